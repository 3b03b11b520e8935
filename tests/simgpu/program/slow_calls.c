// Preloaded into the program (LD_PRELOAD), simulates a slow disk: two calls of a process wait once, for SLOW_SECONDS.
//
//   SLOW_MANIFEST=1   the sync of a checkpoint's manifest, on the thread that writes
//   SLOW_LOG=TEXT     the flush that writes TEXT to logs/rank-N.log, on the main thread
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void wait_once(int* waited) {
  if (*waited) return;
  *waited = 1;
  for (unsigned left = (unsigned)atoi(getenv("SLOW_SECONDS")); left > 0;) left = sleep(left);
}

static const char* path_of(int descriptor, char* path, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t length = readlink(link, path, size - 1);
  path[length > 0 ? length : 0] = 0;
  return path;
}

static int holds(const char* path, const char* text) {
  static char bytes[1 << 20];
  FILE* file = fopen(path, "r");
  if (file == NULL) return 0;
  bytes[fread(bytes, 1, sizeof bytes - 1, file)] = 0;
  fclose(file);
  return strstr(bytes, text) != NULL;
}

int fsync(int descriptor) {
  static int waited;
  char path[4096];
  if (getenv("SLOW_MANIFEST") != NULL && strstr(path_of(descriptor, path, sizeof path), "manifest.json") != NULL)
    wait_once(&waited);
  int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  return real(descriptor);
}

int fflush(FILE* file) {
  static int waited;
  char path[4096];
  const char* text = getenv("SLOW_LOG");
  int (*real)(FILE*) = (int (*)(FILE*))dlsym(RTLD_NEXT, "fflush");
  const int result = real(file);
  if (file != NULL && text != NULL && strstr(path_of(fileno(file), path, sizeof path), "/logs/rank-") != NULL &&
      holds(path, text))
    wait_once(&waited);
  return result;
}
