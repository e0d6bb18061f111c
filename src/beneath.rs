//! Files and directories that a child may have written, opened by descriptor and never through a link that leads out.
//!
//! The worker opens, reads, moves and removes such files only through this module. A child can leave links, FIFOs, sparse files,
//! directories without permissions and nests of any depth. No function here follows a link out of its starting directory, waits
//! for a FIFO, reads more than its limit, or needs more descriptors for a deeper tree. Follows `openat2(2)`, Linux 5.6.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, chmod, fstat, openat2, readlinkat,
    renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

/// No links anywhere in the path.
const NO_LINKS: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
/// Links that stay below the directory, without those of `/proc`, which lead anywhere.
const LINKS_BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// The kernel asks for another try when a directory in the path is renamed meanwhile.
const MAX_TRIES: usize = 64;

/// The permissions that an owner needs to list and change a directory.
const OWNER: Mode = Mode::RWXU;

/// What a path leads to.
#[derive(Debug)]
pub struct ResolvedPath {
    /// The path from the starting directory, without links.
    pub path: PathBuf,
    /// Whether it is a directory.
    pub is_directory: bool,
}

/// An open directory.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    /// Opens a directory whose parents no child can change. Its last component must not be a link.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// A directory below this one. Its path must not contain links.
    pub fn directory(&self, path: &Path) -> io::Result<Self> {
        let path = if path == Path::new("") { Path::new(".") } else { path };
        self.at(path, OFlags::PATH | OFlags::DIRECTORY, NO_LINKS).map(Self)
    }

    /// The content of a regular file below this directory. Its path must not contain links.
    ///
    /// # Errors
    ///
    /// When it is not a regular file, or is longer than `max_bytes`.
    pub fn read(&self, path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
        self.read_by(path, max_bytes, NO_LINKS)
    }

    /// The same, but directories in the path may be links that stay below this one. The file itself may not.
    pub fn read_inside(&self, path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
        self.read_by(path, max_bytes, LINKS_BENEATH)
    }

    fn read_by(&self, path: &Path, max_bytes: usize, links: ResolveFlags) -> io::Result<Vec<u8>> {
        // Without NONBLOCK, opening a FIFO would wait for a writer.
        let file = self.at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW, links)?;
        let about = fstat(&file)?;
        if !is(&about, FileType::RegularFile) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {max_bytes} bytes"));
        if usize::try_from(about.st_size).map_or(true, |size| size > max_bytes) {
            return Err(too_large());
        }
        let mut content = Vec::new();
        File::from(file).take(max_bytes as u64 + 1).read_to_end(&mut content)?;
        if content.len() > max_bytes { Err(too_large()) } else { Ok(content) }
    }

    /// The size of a regular file below this directory. Its path must not contain links.
    ///
    /// # Errors
    ///
    /// [`is_link`] recognizes a link. `InvalidInput`: it is another kind of file.
    pub fn file_size(&self, path: &Path) -> io::Result<u64> {
        let about = fstat(self.at(path, OFlags::PATH, NO_LINKS)?)?;
        if !is(&about, FileType::RegularFile) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(about.st_size.cast_unsigned())
    }

    /// Whether anything exists at a path below this directory, a link included. Directories in the path may be links that stay below.
    pub fn is_there(&self, path: &Path) -> bool {
        self.at(path, OFlags::PATH | OFlags::NOFOLLOW, LINKS_BENEATH).is_ok()
    }

    /// Where a path below this directory leads, by links that stay below it.
    ///
    /// # Errors
    ///
    /// [`leads_out`] recognizes a path that leads out. `NotFound` when nothing is there.
    pub fn resolve(&self, path: &Path) -> io::Result<ResolvedPath> {
        let path = if path == Path::new("") { Path::new(".") } else { path };
        let found = self.at(path, OFlags::PATH, LINKS_BENEATH)?;
        let is_directory = is(&fstat(&found)?, FileType::Directory);
        let (root, path) = (path_of(&self.0)?, path_of(&found)?);
        let path = path.strip_prefix(root).map_err(|_| Errno::XDEV)?.to_owned();
        Ok(ResolvedPath { path, is_directory })
    }

    /// Moves a directory that a child has created to `destination`.
    ///
    /// # Errors
    ///
    /// When it is not a directory of this user, or when the destination exists.
    pub fn move_to(&self, name: &OsStr, destination: &Destination) -> io::Result<()> {
        let about = statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !is(&about, FileType::Directory) || about.st_uid != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "not a directory of this user"));
        }
        let to = destination.path.file_name().ok_or(Errno::INVAL)?;
        self.make_usable(name, &about)?;
        Ok(renameat_with(&self.0, name, &destination.parent.0, to, RenameFlags::NOREPLACE)?)
    }

    /// Removes an empty directory.
    pub fn remove_empty(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, AtFlags::REMOVEDIR)?)
    }

    /// Removes `name` and everything below it. A missing file is not an error.
    ///
    /// Directories are moved up before they are emptied, so a nest of any depth needs few descriptors and no stack. Permissions that
    /// lock out the owner are changed.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.0, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let top = self.usable(name)?;
        let (mut n_raised, mut n_in_vain) = (0, 0);
        loop {
            let n_before = n_raised;
            let (n_found, n_removed) = top.empty(&mut n_raised)?;
            if n_found == 0 {
                return self.remove_empty(name);
            }
            n_in_vain = if n_removed > 0 || n_raised > n_before { 0 } else { n_in_vain + 1 };
            // A network file system brings back files that are open somewhere.
            if n_in_vain == MAX_TRIES {
                return Err(Errno::NOTEMPTY.into());
            }
        }
    }

    /// Bytes on disk of everything below this directory. `None` when it is deeper than `max_depth`, has more than `max_entries`, or
    /// contains a file with several names, which would count for each of them.
    pub fn size_bytes(&self, max_depth: usize, max_entries: usize) -> io::Result<Option<u64>> {
        let mut left = max_entries;
        self.size(max_depth, &mut left)
    }

    fn size(&self, max_depth: usize, n_left: &mut usize) -> io::Result<Option<u64>> {
        let mut n_bytes = 0;
        for entry in self.list()? {
            let entry = entry?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            let about = match statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                about => about?,
            };
            if is(&about, FileType::RegularFile) && about.st_nlink > 1 {
                return Ok(None);
            }
            // The unit of `st_blocks` is always 512 bytes.
            n_bytes += about.st_blocks.cast_unsigned() * 512;
            let Some(left) = n_left.checked_sub(1) else { return Ok(None) };
            *n_left = left;
            if is(&about, FileType::Directory) {
                let Some(depth) = max_depth.checked_sub(1) else { return Ok(None) };
                let below = match self.directory(Path::new(OsStr::from_bytes(name.to_bytes()))) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    below => below?,
                };
                let Some(size) = below.size(depth, n_left)? else { return Ok(None) };
                n_bytes += size;
            }
        }
        Ok(Some(n_bytes))
    }

    /// Its entries, at most one more than `max`.
    pub fn entries(&self, max: usize) -> io::Result<Vec<DirectoryEntry>> {
        let mut entries = Vec::new();
        for entry in self.list()? {
            let entry = entry?;
            let name = entry.file_name();
            if !is_dots(name) {
                let about = statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?;
                entries.push(DirectoryEntry {
                    name: OsString::from_vec(name.to_bytes().to_vec()),
                    kind: FileType::from_raw_mode(about.st_mode),
                    mode: Mode::from_raw_mode(about.st_mode),
                    n_names: about.st_nlink,
                });
            }
            if entries.len() > max {
                break;
            }
        }
        Ok(entries)
    }

    /// Removes the entries in one pass. Returns how many directories there were, and how many of them were removed.
    fn empty(&self, n_raised: &mut u64) -> io::Result<(usize, usize)> {
        let (mut n_found, mut n_removed) = (0, 0);
        self.unlink_each(|name| {
            n_found += 1;
            self.usable(name)?.raise_to(self, n_raised)?;
            match unlinkat(&self.0, name, AtFlags::REMOVEDIR) {
                // New entries are removed in the next pass.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Ok(()) | Err(Errno::NOENT) => n_removed += 1,
                Err(error) => return Err(error.into()),
            }
            Ok(())
        })?;
        Ok((n_found, n_removed))
    }

    /// Removes the files, and moves the directories to `top`.
    fn raise_to(&self, top: &Self, n_raised: &mut u64) -> io::Result<()> {
        self.unlink_each(|name| {
            self.make_usable(name, &statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?)?;
            loop {
                *n_raised += 1;
                match renameat_with(&self.0, name, &top.0, n_raised.to_string(), RenameFlags::NOREPLACE) {
                    Err(Errno::EXIST) => {}
                    moved => return Ok(moved?),
                }
            }
        })
    }

    fn unlink_each(&self, mut on_directory: impl FnMut(&OsStr) -> io::Result<()>) -> io::Result<()> {
        for entry in self.list()? {
            let entry = entry?;
            let name = entry.file_name();
            if is_dots(name) {
                continue;
            }
            match unlinkat(&self.0, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => on_directory(OsStr::from_bytes(name.to_bytes()))?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn list(&self) -> io::Result<Dir> {
        let listed =
            rustix::fs::openat(&self.0, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        Ok(Dir::new(listed?)?)
    }

    /// A directory in this one, with its owner's permissions restored.
    fn usable(&self, name: &OsStr) -> io::Result<Self> {
        self.make_usable(name, &statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?)?;
        self.directory(Path::new(name))
    }

    fn make_usable(&self, name: &OsStr, about: &Stat) -> io::Result<()> {
        let mode = Mode::from_raw_mode(about.st_mode);
        if mode.contains(OWNER) {
            return Ok(());
        }
        let directory = self.directory(Path::new(name))?;
        // A path descriptor has no mode to change, but its `/proc` path leads to the same directory.
        Ok(chmod(descriptor(&directory.0), mode | OWNER)?)
    }

    fn at(&self, path: &Path, flags: OFlags, links: ResolveFlags) -> io::Result<OwnedFd> {
        open_at(&self.0, path, flags, links)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An entry of a directory. Links are not followed.
#[derive(Debug)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: OsString,
    /// What it is.
    pub kind: FileType,
    /// Its permissions.
    pub mode: Mode,
    /// Its number of names, in any directory.
    pub n_names: u64,
}

/// The path of a directory that does not exist yet.
#[derive(Debug)]
pub struct Destination {
    /// Its path.
    pub path: PathBuf,
    /// Its parent.
    pub parent: Directory,
}

impl Destination {
    /// The path `name` in a directory whose parents no child can change.
    pub fn new(parent: &Path, name: &str) -> io::Result<Self> {
        Ok(Self { path: parent.join(name), parent: Directory::open(parent)? })
    }
}

/// Whether a path was not opened because it contains a link.
pub fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

/// Whether a path was not opened because it leads out of its starting directory.
pub fn leads_out(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::XDEV.raw_os_error())
}

/// Opens `path` without the right to read or write it. No part of the path may be a link.
pub fn open_without_links(path: &Path) -> io::Result<OwnedFd> {
    open_at(CWD, path, OFlags::PATH, ResolveFlags::NO_SYMLINKS)
}

fn open_at(start: impl AsFd, path: &Path, flags: OFlags, links: ResolveFlags) -> io::Result<OwnedFd> {
    let mut n_tries = 0;
    loop {
        n_tries += 1;
        match openat2(start.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), links) {
            Err(Errno::AGAIN) if n_tries < MAX_TRIES => {}
            opened => return Ok(opened?),
        }
    }
}

fn is(about: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(about.st_mode) == kind
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

fn descriptor(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// The kernel's path of an open file.
fn path_of(file: &OwnedFd) -> io::Result<PathBuf> {
    let path = readlinkat(CWD, descriptor(file), Vec::new())?;
    Ok(OsString::from_vec(path.into_bytes()).into())
}

#[cfg(test)]
mod tests;
