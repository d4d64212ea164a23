"""The functions of Python that the simulation replaces, as they were before. The kernel itself uses these."""

from __future__ import annotations

import builtins
import os

access = os.access
chmod = os.chmod
close = os.close
copy_file_range = os.copy_file_range
dup = os.dup
dup2 = os.dup2
fchmod = os.fchmod
fstat = os.fstat
ftruncate = os.ftruncate
getpid = os.getpid
kill = os.kill
link = os.link
listdir = os.listdir
lseek = os.lseek
lstat = os.lstat
mkdir = os.mkdir
open_file = builtins.open
os_open = os.open
pread = os.pread
preadv = os.preadv
pwrite = os.pwrite
read = os.read
readlink = os.readlink
rename = os.rename
rmdir = os.rmdir
scandir = os.scandir
sendfile = os.sendfile
stat = os.stat
statvfs = os.statvfs
symlink = os.symlink
truncate = os.truncate
unlink = os.unlink
urandom = os.urandom
utime = os.utime
write = os.write
