//! What children leave behind: links, FIFOs, nests, directories without permissions.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use rustix::fs::{mkdirat, mknodat};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::*;

fn open(path: &Path) -> Directory {
    Directory::open(path).expect("opened")
}

/// Runs `work` as root without its capabilities, or as the user who runs the tests.
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
    for path in
        ["sparse", "fifo", "directory", "link", "zero", "none", "in/file", "out/etc/hostname", "../x", "/etc/hostname"]
    {
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
    for name in
        ["1/1", "1/2/3", "\n", "-rf", " ", "2"].map(OsString::from).into_iter().chain([OsString::from_vec(vec![0xff])])
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
    let removed = small.spawn(move || root.remove(OsStr::new("nest"))).expect("started").join().expect("no overflow");
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
