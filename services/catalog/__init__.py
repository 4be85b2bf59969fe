"""What exists: holdings, files, blobs, locations, tags, usage."""
