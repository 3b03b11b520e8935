// Preloaded into a program (LD_PRELOAD), makes pread, pwrite or fsync fail or wait for some files, or sends a signal at a
// call.
//
//   FAULT_CALL    pread | pwrite | fsync | MPI_Init_thread
//   FAULT_PATH    calls on files whose path contains this
//   FAULT_ERRNO   the call fails with this error number, ...
//   FAULT_WHILE   ... if this is set, only as long as this file exists
//   FAULT_HOLD    or: the call waits as long as this file exists; a file with .held after its name shows that one waits
//   FAULT_SIGNAL  or: the process sends itself this signal, and the call continues
//   FAULT_AT      only at the call of this number, from 1
//   FAULT_RANK    MPI_Init_thread: only on this rank
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long number_of(const char *name) {
  const char *text = getenv(name);
  return text == NULL ? 0 : atol(text);
}

// True if the call must fail; errno is then set.
static int fails(const char *call, int descriptor) {
  const char *wanted = getenv("FAULT_CALL"), *part = getenv("FAULT_PATH"), *condition = getenv("FAULT_WHILE");
  if (wanted == NULL || part == NULL || strcmp(wanted, call) != 0) return 0;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  if (strstr(path, part) == NULL) return 0;
  if (condition != NULL && access(condition, F_OK) != 0) return 0;
  static long calls = 0;
  const long number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST), at = number_of("FAULT_AT");
  if (at != 0 && number != at) return 0;
  const char *hold = getenv("FAULT_HOLD");
  if (hold != NULL && access(hold, F_OK) == 0) {
    snprintf(path, sizeof path, "%s.held", hold);
    close(open(path, O_WRONLY | O_CREAT, 0600));
    while (access(hold, F_OK) == 0) usleep(10000);
  }
  if (hold != NULL) return 0;
  if (number_of("FAULT_SIGNAL") != 0) raise((int)number_of("FAULT_SIGNAL"));
  errno = (int)number_of("FAULT_ERRNO");
  return errno != 0;
}

ssize_t pread(int descriptor, void *bytes, size_t count, off_t offset) {
  ssize_t (*original)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread");
  return fails("pread", descriptor) ? -1 : original(descriptor, bytes, count, offset);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t offset) {
  ssize_t (*original)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite");
  return fails("pwrite", descriptor) ? -1 : original(descriptor, bytes, count, offset);
}

int fsync(int descriptor) {
  int (*original)(int) = dlsym(RTLD_NEXT, "fsync");
  return fails("fsync", descriptor) ? -1 : original(descriptor);
}

ssize_t pread64(int descriptor, void *bytes, size_t count, off_t offset) {
  return pread(descriptor, bytes, count, offset);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t count, off_t offset) {
  return pwrite(descriptor, bytes, count, offset);
}

int MPI_Init_thread(int *argc, char ***argv, int required, int *provided) {
  int (*original)(int *, char ***, int, int *) = dlsym(RTLD_NEXT, "MPI_Init_thread");
  const char *wanted = getenv("FAULT_CALL");
  if (wanted != NULL && strcmp(wanted, "MPI_Init_thread") == 0 &&
      (getenv("FAULT_RANK") == NULL || number_of("FAULT_RANK") == number_of("OMPI_COMM_WORLD_RANK")))
    raise((int)number_of("FAULT_SIGNAL"));
  return original(argc, argv, required, provided);
}
