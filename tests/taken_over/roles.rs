//! The children that this program plays: the product's launcher, and taken-over children.

use std::ffi::OsString;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use serde_json::{Value, json};
use sidebake::sandbox::{self, Sandbox};
use world::definition;

use crate::scripts::{self, Ground};

/// A file in a job's directory that marks its source child as taken over, and names the attack.
pub const MARK: &str = "attack";

/// More than a worker should ever read.
pub const TOO_MUCH: u64 = 16 << 20;

pub fn launch(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Err(error) = sandbox::launch(arguments);
    eprintln!("{}: {error}", sandbox::LAUNCH);
    ExitCode::FAILURE
}

/// The product's source child, unless the job's directory has a mark.
pub fn source_child(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let text = |n: usize| arguments[n].to_str().unwrap();
    let sandbox: Value = serde_json::from_str(text(0)).unwrap();
    let stage = Path::new(sandbox["write"][1].as_str().unwrap());
    let Ok(mark) = std::fs::read(stage.parent().unwrap().join(MARK)) else {
        return sidebake::source::child_main(arguments.into_iter());
    };
    let mut ground: Ground = serde_json::from_slice(&mark).unwrap();
    Sandbox::enter(text(0), text(1)).unwrap();
    let request: Value = serde_json::from_reader(std::io::stdin()).unwrap();
    let path = |name: &str| PathBuf::from(request[name].as_str().unwrap());
    (ground.mirror, ground.stage) = (path("mirror"), path("stage"));
    // Ignores an error, because then a wall stopped the attack.
    let _ = scripts::source(&ground);
    println!("{}", done());
    ExitCode::SUCCESS
}

/// The last message of a source child that claims another commit.
fn done() -> Value {
    let size = json!({"n_entries": 2, "n_bytes": 10});
    json!({"done": {"sha": "7".repeat(40), "size": size, "lfs_pointers": [], "submodules": [], "links": [], "changes": [], "encoded": [],
        "committed_at_s": -1}})
}

/// A source child without a worker. Arguments: sandbox, the worker's process id, ground.
pub fn alone(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<String> = arguments.map(|argument| argument.into_string().unwrap()).collect();
    Sandbox::enter(&arguments[0], &arguments[1]).unwrap();
    let ground: Ground = serde_json::from_str(&arguments[2]).unwrap();
    let _ = scripts::source(&ground);
    println!("{}", done());
    ExitCode::SUCCESS
}

/// docker-buildx: resolves JSON like the scripted one of `tests/world`, and follows the ground in the first target.
pub fn buildx(command: &str) -> ExitCode {
    let is_print = std::env::args().any(|argument| argument == "--print");
    match command {
        "version" => println!("github.com/docker/buildx 0.29.1+taken-over 0"),
        "dial-stdio" => dial(),
        _ => bake(is_print),
    }
    ExitCode::SUCCESS
}

fn bake(is_print: bool) {
    let file = std::env::args().skip_while(|argument| argument != "--file").nth(1).expect("a definition");
    let text = std::fs::read_to_string(file).unwrap();
    let printed = definition::resolve(&text, &["app".to_owned()]).unwrap();
    let ground = printed["target"]["app"]["args"]["ground"].as_str().unwrap();
    let ground: Ground = serde_json::from_str(ground).unwrap();
    // The product does not tell the child that resolves a definition its own directory.
    let told = std::env::var_os("TMPDIR").map(|tmp| Path::new(&tmp).parent().unwrap().to_owned());
    let private = told.unwrap_or_else(|| printed["target"]["app"]["args"]["print"].as_str().unwrap().into());
    look_around(&private);
    if is_print == (ground.attack == "print_leftover") {
        let _ = scripts::buildx(&ground, &private);
    }
    if is_print {
        println!("{printed}");
    }
}

/// Uses what an earlier run left: runs a helper and shows a configuration.
fn look_around(private: &Path) {
    let config = std::fs::read(variable("DOCKER_CONFIG").join("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_slice(&config).unwrap_or_default();
    if let Some(helper) = config["credHelpers"]["registry.example"].as_str() {
        let _ = Command::new(helper).arg("get").status();
    }
    if private.join("buildx/leftover").exists() {
        std::fs::write(private.join("tmp/seen"), "").unwrap();
    }
}

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).map(PathBuf::from).unwrap_or_default()
}

/// Connects as buildx's drivers do: reads the instance and the kubeconfig that it names, including plugins.
pub fn dial() {
    let config = PathBuf::from(std::env::var_os("BUILDX_CONFIG").unwrap());
    let records = std::fs::read_dir(config.join("instances")).into_iter().flatten().flatten();
    for record in records {
        let record: Value = serde_json::from_slice(&std::fs::read(record.path()).unwrap()).unwrap();
        let endpoint = record["Nodes"][0]["Endpoint"].as_str().unwrap_or_default().to_owned();
        if let Some(address) = endpoint.strip_prefix("tcp://") {
            visit(address);
            continue;
        }
        let kubeconfig = std::fs::read(std::env::var_os("KUBECONFIG").unwrap_or_default()).unwrap_or_default();
        let kubeconfig: Value = serde_json::from_slice(&kubeconfig).unwrap_or_default();
        if let Some(plugin) = kubeconfig["users"][0]["user"]["exec"]["command"].as_str() {
            let _ = Command::new(plugin).status();
        }
        let server = kubeconfig["clusters"][0]["cluster"]["server"].as_str().unwrap_or_default();
        visit(server.trim_start_matches("http://").trim_end_matches('/'));
    }
}

/// Connects to a port, and waits until the listener has recorded it.
fn visit(address: &str) {
    if let Ok(mut stream) = TcpStream::connect(address) {
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

/// Removes a tree as most programs do: without root's capabilities and with the usual limit of open files.
pub fn remove_carelessly(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    give_up_capabilities();
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), maximum: Some(1024) }).unwrap();
    match std::fs::remove_dir_all(arguments.next().unwrap()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

pub fn give_up_capabilities() {
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).unwrap();
}

/// Reads a file to its end. Exits 1 when the file is too large.
pub fn read_carelessly(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Ok(file) = std::fs::File::open(arguments.next().unwrap()) else { return ExitCode::SUCCESS };
    let n_bytes = std::io::copy(&mut file.take(TOO_MUCH + 1), &mut std::io::sink()).unwrap_or(0);
    if n_bytes > TOO_MUCH { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
