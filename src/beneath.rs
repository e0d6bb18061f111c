//! Files and directories that a child may have written, reached by descriptor and never through a link that leads out.
//!
//! Whatever the worker opens, reads, moves or removes where a child could write goes through here. A child can leave links,
//! FIFOs, sparse files, directories without permissions and nests of any depth. Nothing here follows a link out of the
//! directory it starts from, waits for a FIFO, reads more than it was told to, or needs more descriptors for a deeper
//! tree. Follows `openat2(2)`, which Linux has from 5.6 on.

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

/// No link on the way, nor in the last place.
const NO_LINKS: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
/// Links that stay beneath. Those of `/proc` lead anywhere.
const LINKS_BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// The kernel asks for another try when something on the way is renamed meanwhile.
const MAX_TRIES: usize = 64;

/// What a directory's owner needs to list it and to change what is in it.
const OWNER: Mode = Mode::RWXU;

/// What a path leads to.
#[derive(Debug)]
pub struct Found {
    /// From the directory that was asked, without links.
    pub path: PathBuf,
    /// Whether it is a directory.
    pub is_directory: bool,
}

/// A directory that is open.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    /// Opens a directory whose parents no child can change. A link in its last place is an error.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// A directory below this one, reached without a link.
    pub fn directory(&self, path: &Path) -> io::Result<Self> {
        let path = if path == Path::new("") { Path::new(".") } else { path };
        self.at(path, OFlags::PATH | OFlags::DIRECTORY, NO_LINKS).map(Self)
    }

    /// The content of a regular file below this directory, reached without a link.
    ///
    /// # Errors
    ///
    /// Also when it is anything but a regular file, or longer than `max_bytes`.
    pub fn read(&self, path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
        self.read_by(path, max_bytes, NO_LINKS)
    }

    /// The same, where the directories on the way may be links that stay below this one. The file itself may not.
    pub fn read_inside(&self, path: &Path, max_bytes: usize) -> io::Result<Vec<u8>> {
        self.read_by(path, max_bytes, LINKS_BENEATH)
    }

    fn read_by(&self, path: &Path, max_bytes: usize, links: ResolveFlags) -> io::Result<Vec<u8>> {
        // Opened for reading, a FIFO would wait for somebody who writes.
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

    /// The size of a regular file below this directory, reached without a link.
    ///
    /// # Errors
    ///
    /// [`is_link`] tells of a link; `InvalidInput` is anything else that is not a regular file.
    pub fn file_size(&self, path: &Path) -> io::Result<u64> {
        let about = fstat(self.at(path, OFlags::PATH, NO_LINKS)?)?;
        if !is(&about, FileType::RegularFile) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(about.st_size.cast_unsigned())
    }

    /// Whether there is anything at a path below this directory, be it a link. Directories on the way may be links that stay
    /// below.
    pub fn is_there(&self, path: &Path) -> bool {
        self.at(path, OFlags::PATH | OFlags::NOFOLLOW, LINKS_BENEATH).is_ok()
    }

    /// Where a path below this directory leads, by links that stay below it.
    ///
    /// # Errors
    ///
    /// [`leads_out`] tells of one that does. `NotFound` when there is nothing.
    pub fn resolve(&self, path: &Path) -> io::Result<Found> {
        let path = if path == Path::new("") { Path::new(".") } else { path };
        let found = self.at(path, OFlags::PATH, LINKS_BENEATH)?;
        let is_directory = is(&fstat(&found)?, FileType::Directory);
        let (root, path) = (place(&self.0)?, place(&found)?);
        let path = path.strip_prefix(root).map_err(|_| Errno::XDEV)?.to_owned();
        Ok(Found { path, is_directory })
    }

    /// Moves a directory that a child has made to where `destination` says, as it is.
    ///
    /// # Errors
    ///
    /// When it is not a directory of this user's, or something is there already.
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

    /// Removes what is called `name`, with all below it. Nothing there is no error.
    ///
    /// Directories are moved up before they are emptied, so a nest of any depth needs a few descriptors and no stack.
    /// Permissions that keep their owner out are changed.
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
            // A network file system brings files back that are open somewhere.
            if n_in_vain == MAX_TRIES {
                return Err(Errno::NOTEMPTY.into());
            }
        }
    }

    /// Bytes on the disk of all that is below this directory; `None` when it is deeper than `max_depth`, has more than
    /// `max_entries`, or a file with several names, which would count for each of them.
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
            // The unit of `st_blocks` is 512 bytes whatever the file system's is.
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

    /// What its entries are, one more than `max` at most.
    pub fn entries(&self, max: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in self.list()? {
            let entry = entry?;
            let name = entry.file_name();
            if !is_dots(name) {
                let about = statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?;
                entries.push(Entry {
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

    /// Removes the entries, one pass over them. Returns how many directories there were, and how many of them it removed.
    fn empty(&self, n_raised: &mut u64) -> io::Result<(usize, usize)> {
        let (mut n_found, mut n_removed) = (0, 0);
        self.unlink_each(|name| {
            n_found += 1;
            self.usable(name)?.raise_to(self, n_raised)?;
            match unlinkat(&self.0, name, AtFlags::REMOVEDIR) {
                // What came in between goes with the next pass.
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

    /// A directory in this one, with its owner's permissions.
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
        // A descriptor that opens nothing has no mode to change, but it has a path that leads nowhere else.
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

/// An entry of a directory, links not followed.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// What it is.
    pub kind: FileType,
    /// Its permissions.
    pub mode: Mode,
    /// Names that it has, in any directory.
    pub n_names: u64,
}

/// A place for a directory that does not exist yet.
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

/// Whether a path was not opened because of a link in it.
pub fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

/// Whether a path was not opened because it leads out of the directory from which it starts.
pub fn leads_out(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::XDEV.raw_os_error())
}

/// Opens whatever is at `path`, without a right to read or write it; no part of the path may be a link.
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

/// Where the kernel says that an open file is.
fn place(file: &OwnedFd) -> io::Result<PathBuf> {
    let path = readlinkat(CWD, descriptor(file), Vec::new())?;
    Ok(OsString::from_vec(path.into_bytes()).into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use rustix::fs::{mkdirat, mknodat};
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

    use super::*;

    fn open(path: &Path) -> Directory {
        Directory::open(path).expect("opened")
    }

    /// Runs `work` as root without its capabilities, or as whoever runs the tests.
    fn without_capabilities<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        let none = CapabilitySet::empty();
        let bare = move || {
            set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
                .expect("given up");
            work()
        };
        std::thread::scope(|scope| scope.spawn(bare).join().expect("no panic"))
    }

    #[test]
    fn only_a_regular_file_within_its_size_is_read() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let root = open(home.path());
        fs::write(home.path().join("file"), "12345").expect("written");
        File::create(home.path().join("sparse")).and_then(|file| file.set_len(1 << 40)).expect("made");
        mknodat(&root, "fifo", FileType::Fifo, Mode::RWXU, 0).expect("made");
        fs::create_dir(home.path().join("directory")).expect("made");
        for (link, to) in [("link", "file"), ("zero", "/dev/zero"), ("out", "/"), ("in", "directory")] {
            symlink(to, home.path().join(link)).expect("linked");
        }
        fs::write(home.path().join("directory/file"), "inside").expect("written");

        let read = |path: &str| root.read(Path::new(path), 5);
        assert_eq!(read("file").expect("read"), b"12345");
        assert_eq!(root.read(Path::new("file"), 4).expect_err("refused").to_string(), "larger than 4 bytes");
        for path in [
            "sparse",
            "fifo",
            "directory",
            "link",
            "zero",
            "none",
            "in/file",
            "out/etc/hostname",
            "../x",
            "/etc/hostname",
        ] {
            assert!(read(path).is_err(), "{path}");
        }
        assert_eq!(root.read_inside(Path::new("in/file"), 9).expect("read"), b"inside");
        for path in ["link", "out/etc/hostname", "zero"] {
            assert!(root.read_inside(Path::new(path), 9).is_err(), "{path}");
        }
        assert_eq!(root.file_size(Path::new("sparse")).expect("known"), 1 << 40);
        assert!(is_link(&root.file_size(Path::new("link")).expect_err("refused")));
    }

    #[test]
    fn a_path_is_resolved_as_far_as_it_stays_beneath() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let root = open(home.path());
        fs::create_dir_all(home.path().join("a/b")).expect("made");
        fs::write(home.path().join("a/file"), "").expect("written");
        let links = [
            ("in", "a/b"),
            ("up", "../.."),
            ("a/out", "../.."),
            ("absolute", "/etc"),
            ("self", "/proc/self/root"),
            ("loop", "loop"),
        ];
        for (link, to) in links {
            symlink(to, home.path().join(link)).expect("linked");
        }
        let resolve = |path: &str| root.resolve(Path::new(path));
        for (path, expected, is_directory) in [
            (".", "", true),
            ("a/file", "a/file", false),
            ("in", "a/b", true),
            ("in/../file", "a/file", false),
            ("a/../in", "a/b", true),
        ] {
            let found = resolve(path).expect("found");
            assert_eq!((found.path.as_path(), found.is_directory), (Path::new(expected), is_directory), "{path}");
        }
        for path in ["..", "up", "a/out", "absolute", "absolute/hostname", "self", "/", "/etc", "in/../../.."] {
            assert!(leads_out(&resolve(path).expect_err("refused")), "{path}");
        }
        assert_eq!(resolve("none").expect_err("refused").kind(), io::ErrorKind::NotFound);
        assert!(is_link(&resolve("loop").expect_err("refused")));
    }

    #[test]
    fn whatever_a_child_leaves_is_removed_and_nothing_else() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let (root, outside) = (open(home.path()), home.path().join("outside"));
        fs::create_dir(&outside).expect("made");
        fs::write(outside.join("file"), "x").expect("written");
        let left = home.path().join("left");
        fs::create_dir_all(left.join("1/2")).expect("made");
        // Names that removal itself would use, and odd ones.
        for name in ["1/1", "1/2/3", "\n", "-rf", " ", "2"]
            .map(OsString::from)
            .into_iter()
            .chain([OsString::from_vec(vec![0xff])])
        {
            fs::create_dir_all(left.join(&name).join("1")).expect("made");
            fs::write(left.join(name).join("file"), "x").expect("written");
        }
        symlink(&outside, left.join("link")).expect("linked");
        symlink(&outside, left.join("1/2/link")).expect("linked");
        mknodat(open(&left), "fifo", FileType::Fifo, Mode::RWXU, 0).expect("made");
        for locked in ["1/2", "1", "2/1", "."] {
            fs::set_permissions(left.join(locked), fs::Permissions::from_mode(0o000)).expect("set");
        }

        without_capabilities(|| root.remove(OsStr::new("left"))).expect("removed");
        assert!(!left.exists() && outside.join("file").exists());
        root.remove(OsStr::new("left")).expect("nothing to remove");
        symlink(&outside, &left).expect("linked");
        root.remove(OsStr::new("left")).expect("removed");
        assert!(!left.is_symlink() && outside.join("file").exists());
    }

    #[test]
    fn a_nest_of_ten_thousand_levels_is_removed_on_a_small_stack() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let root = open(home.path());
        let mut deepest = root.0.try_clone().expect("copied");
        for _ in 0..10_000 {
            mkdirat(&deepest, "nest", Mode::RWXU).expect("made");
            deepest = open_at(&deepest, Path::new("nest"), OFlags::PATH, NO_LINKS).expect("opened");
        }
        drop(deepest);
        let small = std::thread::Builder::new().stack_size(64 << 10);
        let removed =
            small.spawn(move || root.remove(OsStr::new("nest"))).expect("started").join().expect("no overflow");
        removed.expect("removed");
        assert_eq!(fs::read_dir(home.path()).expect("read").count(), 0);
    }

    #[test]
    fn only_a_directory_is_moved_and_nothing_is_replaced() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let root = open(home.path());
        fs::create_dir_all(home.path().join("stage/tree/deep")).expect("made");
        fs::create_dir(home.path().join("to")).expect("made");
        symlink("/etc", home.path().join("stage/link")).expect("linked");
        fs::write(home.path().join("stage/file"), "").expect("written");
        let to = |name: &str| Destination::new(&home.path().join("to"), name).expect("opened");
        let stage = root.directory(Path::new("stage")).expect("opened");
        for name in ["link", "file", "none"] {
            assert!(stage.move_to(OsStr::new(name), &to("x")).is_err(), "{name}");
        }
        fs::set_permissions(home.path().join("stage/tree"), fs::Permissions::from_mode(0o000)).expect("set");
        without_capabilities(|| stage.move_to(OsStr::new("tree"), &to("x"))).expect("moved");
        assert!(home.path().join("to/x/deep").is_dir());
        assert_eq!(fs::metadata(home.path().join("to/x")).expect("known").mode() & 0o777, 0o700);
        fs::create_dir(home.path().join("stage/again")).expect("made");
        assert!(stage.move_to(OsStr::new("again"), &to("x")).is_err(), "it is taken");
    }

    #[test]
    fn a_size_is_known_of_what_is_neither_too_deep_nor_too_much() {
        let home = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(home.path().join("a/b")).expect("made");
        fs::write(home.path().join("a/b/file"), vec![b'x'; 1 << 20]).expect("written");
        symlink("/", home.path().join("a/out")).expect("linked");
        let root = open(home.path());
        let size = root.size_bytes(2, 4).expect("read").expect("known");
        assert!((1 << 20..2 << 20).contains(&size), "{size}");
        assert_eq!(root.size_bytes(1, 4).expect("read"), None);
        assert_eq!(root.size_bytes(2, 3).expect("read"), None);
    }
}
