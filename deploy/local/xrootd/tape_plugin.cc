// Gives a stock xrootd 5 the face of EOS+CTA. One library, two plug-ins:
//
//   oss.statlib -2 preopen LIB     what stat and open see: OFFLINE once evicted, BACKUP_EXISTS once on tape
//   ofs.preplib LIB DIRECTORY      prepare, cancel, evict and query, answered by the tape library
//                                  that listens on DIRECTORY/library.sock
//
// The state of a file is in its extended attributes, so it moves with a rename and dies with the file:
//   user.tape.offline   the bytes are on tape only; the file is a hole of the right size
//   user.tape.copy      "<id> <size> <mtime in ns>" of the tape copy; void once the file has changed
//
// A request is a series of NUL-terminated fields, command, request id, path, path …, ended by the end of
// the stream: no byte that a path may hold can forge another field. The answer is "<errno>\n<text>".

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "XrdOfs/XrdOfsPrepare.hh"
#include "XrdOss/XrdOss.hh"
#include "XrdOss/XrdOssStatInfo.hh"
#include "XrdOuc/XrdOucBuffer.hh"
#include "XrdOuc/XrdOucErrInfo.hh"
#include "XrdOuc/XrdOucTList.hh"
#include "XrdSfs/XrdSfsFlags.hh"
#include "XrdSfs/XrdSfsInterface.hh"
#include "XrdVersion.hh"

namespace
{
const int kAnswerSeconds = 50;    // below the client's own request timeout of 60 s

bool isOffline(const char *file)
{
   return getxattr(file, "user.tape.offline", nullptr, 0) >= 0;
}

bool isOnTape(const char *file, const struct stat &now)
{
   char value[160];
   ssize_t length = getxattr(file, "user.tape.copy", value, sizeof(value) - 1);
   if (length <= 0) return false;
   value[length] = 0;
   long long size, mtime;
   if (sscanf(value, "%*s %lld %lld", &size, &mtime) != 2) return false;
   return size == (long long)now.st_size
       && mtime == now.st_mtim.tv_sec * 1000000000LL + now.st_mtim.tv_nsec;
}

int tapeStat(const char *file, struct stat *now, int options, XrdOucEnv *, const char *)
{
   if (stat(file, now)) return -1;
   if (!S_ISREG(now->st_mode)) return 0;
   bool offline = isOffline(file);
   if (offline && (options & XRDOSS_preop)) {errno = ENODEV; return -1;}    // as EOS answers
   if (offline) now->st_rdev |= XRDSFS_OFFLINE;
   if (isOnTape(file, *now)) now->st_rdev |= XRDSFS_HASBKUP;
   return 0;
}

class Connection
{
public:
   explicit Connection(int directory) : fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0))
      {struct timeval limit = {kAnswerSeconds, 0};
       setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
       setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
       // By way of the open directory: its own path may be longer than sun_path.
       struct sockaddr_un address = {};
       address.sun_family = AF_UNIX;
       snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/library.sock", directory);
       good = fd >= 0 && !connect(fd, (struct sockaddr *)&address, sizeof(address));
      }
  ~Connection() {if (fd >= 0) close(fd);}

   bool exchange(const std::string &request, std::string &answer)
      {if (!good || !sendAll(request) || shutdown(fd, SHUT_WR)) return false;
       char block[65536];
       ssize_t got;
       while ((got = read(fd, block, sizeof(block))) > 0) answer.append(block, got);
       return got == 0;
      }

private:
   bool sendAll(const std::string &data)
      {for (size_t done = 0; done < data.size();)
           {ssize_t sent = send(fd, data.data() + done, data.size() - done, MSG_NOSIGNAL);
            if (sent <= 0) return false;
            done += sent;
           }
       return true;
      }

   int  fd;
   bool good;
};

class TapePrepare : public XrdOfsPrepare
{
public:
   explicit TapePrepare(int libraryDirectory) : directory(libraryDirectory) {}

   int begin(XrdSfsPrep &request, XrdOucErrInfo &error, const XrdSecEntity *) override
      {if (request.opts & Prep_EVICT) return act("evict", request, error);
       if (request.opts & Prep_STAGE) return act("stage", request, error);
       error.setErrInfo(ENOTSUP, "the tape library knows stage, evict and cancel only");
       return SFS_ERROR;
      }

   int cancel(XrdSfsPrep &request, XrdOucErrInfo &error, const XrdSecEntity *) override
      {return act("cancel", request, error);}

   int query(XrdSfsPrep &request, XrdOucErrInfo &error, const XrdSecEntity *) override
      {std::string text;
       if (!ask("query", request, error, text)) return SFS_ERROR;
       int size = (int)text.size() + 1;
       error.setErrInfo(size, new XrdOucBuffer(strdup(text.c_str()), size));
       return SFS_DATA;
      }

private:
   // SFS_OK makes xrootd answer with the request id that it has made itself.
   int act(const char *command, XrdSfsPrep &request, XrdOucErrInfo &error)
      {std::string text;
       return ask(command, request, error, text) ? SFS_OK : SFS_ERROR;
      }

   bool ask(const char *command, XrdSfsPrep &request, XrdOucErrInfo &error, std::string &text)
      {std::string fields;
       addField(fields, command);
       addField(fields, request.reqid);
       for (XrdOucTList *path = request.paths; path; path = path->next) addField(fields, path->text);
       std::string answer;
       if (!Connection(directory).exchange(fields, answer)) return fail(error, EIO, "the tape library is down");
       size_t end = answer.find('\n');
       if (end == std::string::npos) return fail(error, EIO, "the tape library failed; see its log");
       text = answer.substr(end + 1);
       int code = atoi(answer.c_str());
       return code ? fail(error, code, text.c_str()) : true;
      }

   static void addField(std::string &fields, const char *value)
      {fields.append(value ? value : "");
       fields.push_back('\0');
      }

   static bool fail(XrdOucErrInfo &error, int code, const char *text)
      {error.setErrInfo(code, text);
       return false;
      }

   int directory;
};
}

extern "C"
{
XrdOssStatInfo2_t XrdOssStatInfoInit2(XrdOss *, XrdSysLogger *, const char *, const char *, XrdOucEnv *)
{
   return tapeStat;
}

XrdOfsPrepare *XrdOfsgetPrepare(XrdOfsgetPrepareArguments)
{
   int directory = open(parms ? parms : "", O_PATH | O_DIRECTORY | O_CLOEXEC);
   return directory < 0 ? nullptr : new TapePrepare(directory);
}
}

XrdVERSIONINFO(XrdOssStatInfoInit2, NearlineTape);
XrdVERSIONINFO(XrdOfsgetPrepare, NearlineTape);
