"""Runs a process under another clock through the dynamic linker: real code and sockets, and hours that take seconds."""

from __future__ import annotations

from tests.lab import Lab

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <time.h>

static long number(const char *path, long otherwise) {
  FILE *file = fopen(path, "r");
  long found = otherwise;
  if (file) { if (fscanf(file, "%ld", &found) != 1) found = otherwise; fclose(file); }
  return found;
}

/* The clock that only goes on: so many seconds for each real one, from when that was last changed. */
static void hasten(struct timespec *now) {
  static long speed = 1;
  static double from, began;
  double real = now->tv_sec + now->tv_nsec / 1e9;
  long wanted = number("/run/clock-speed", 1);
  if (wanted != speed) { began += (real - from) * (speed - 1); from = real; speed = wanted; }
  double shown = real + began + (real - from) * (speed - 1);
  now->tv_sec = (time_t)shown;
  now->tv_nsec = (long)((shown - (time_t)shown) * 1e9);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int done = real(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += number("/run/clock-offset", 0);
  if (clock == CLOCK_MONOTONIC) hasten(now);
  return done;
}

int epoll_wait(int fd, struct epoll_event *events, int size, int timeout) {
  static int (*real)(int, struct epoll_event *, int, int);
  if (!real) real = (int (*)(int, struct epoll_event *, int, int))dlsym(RTLD_NEXT, "epoll_wait");
  long speed = number("/run/clock-speed", 1);
  return real(fd, events, size, timeout > 0 ? (timeout + speed - 1) / speed : timeout);
}
"""
"""Waits keep their real duration, except those of the event loop itself."""


class Clock:
    """Use as `lab.start(name, env=Clock(lab).env)`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        lab.path("/run/shim.c").write_text(SHIM)
        lab.run(["gcc", "-shared", "-fPIC", "-o", "/run/shim.so", "/run/shim.c", "-ldl"])
        self.env = {"LD_PRELOAD": "/run/shim.so"}

    def jump(self, seconds: int) -> None:
        """Set the wall clock."""
        self._write("offset", seconds)

    def run(self, speed: int) -> None:
        """Let so many seconds pass per second, from the next wake-up of the process on; the wall clock stays."""
        self._write("speed", speed)

    def _write(self, what: str, number: int) -> None:
        path, new = self._lab.path(f"/run/clock-{what}"), self._lab.path(f"/run/clock-{what}.new")
        new.write_text(str(number))
        new.chmod(0o644)
        new.rename(path)
