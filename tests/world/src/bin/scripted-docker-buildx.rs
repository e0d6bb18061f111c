//! A `docker-buildx` that builds nothing. It reads builder instances and resolves definitions as the real one does. It
//! bakes by the script of the builder that it connects to (`world::Builder`).
//!
//! It runs in the worker's sandbox, so it uses little of the system: blocking I/O, no Unix sockets, no `/proc`.

#![forbid(unsafe_code)]
// Its interface is stdout, stderr and an exit code, and a bug in it should panic.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use world::{Report, Step, definition};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let command = args.first().map_or("", String::as_str);
    let line = parse(&args);
    let result = match command {
        "version" => {
            // A copy called `docker-buildx-0.31.0` reports that version.
            let name = std::env::args().next().unwrap();
            let version = name.rsplit_once("docker-buildx-").map_or("0.29.1", |(_, version)| version);
            println!("github.com/docker/buildx {version}+scripted 0");
            Ok(())
        }
        "bake" => line.and_then(|line| bake(&line)),
        "sleep" => {
            std::thread::sleep(Duration::from_secs(120));
            Ok(())
        }
        other => Err(format!("the scripted docker-buildx has no command {other:?}")),
    };
    if let Err(error) = result {
        eprintln!("ERROR: {error}");
        exit(1);
    }
}

/// The arguments after the command: `--flag value`, `--flag=value`, `--switch`, `-f value`, and the rest.
struct Line {
    flags: HashMap<String, Vec<String>>,
    rest: Vec<String>,
}

impl Line {
    fn is_set(&self, switch: &str) -> bool {
        self.flag(switch).is_some_and(|value| value != "false")
    }

    fn flag(&self, name: &str) -> Option<&str> {
        self.flags.get(name)?.last().map(String::as_str)
    }
}

fn parse(args: &[String]) -> Result<Line, String> {
    const VALUED: [&str; 8] = ["allow", "builder", "file", "format", "list", "metadata-file", "progress", "set"];
    const SWITCHES: [&str; 3] = ["debug", "print", "quiet"];
    let mut line = Line { flags: HashMap::new(), rest: Vec::new() };
    let mut args = args.iter().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--" {
            line.rest.extend(args.by_ref().cloned());
            break;
        }
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-').filter(|flag| !flag.is_empty()))
        else {
            line.rest.push(arg.clone());
            continue;
        };
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
        let name = if name == "f" { "file" } else { name };
        let value = match value {
            Some(value) => value,
            None if SWITCHES.contains(&name) => "true".into(),
            None => args.next().cloned().ok_or(format!("flag needs an argument: --{name}"))?,
        };
        if !VALUED.contains(&name) && !SWITCHES.contains(&name) {
            return Err(format!("unknown flag: --{name} (of those that the scripted docker-buildx imitates)"));
        }
        line.flags.entry(name.into()).or_default().push(value);
    }
    Ok(line)
}

fn instance_path(name: &str) -> Result<PathBuf, String> {
    let dir = std::env::var_os("BUILDX_CONFIG").ok_or("the scripted docker-buildx needs BUILDX_CONFIG")?;
    Ok(Path::new(&dir).join("instances").join(name))
}

fn instance(name: &str) -> Result<Value, String> {
    let text = std::fs::read_to_string(instance_path(name)?).map_err(|_| format!("no builder {name:?} found"))?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

fn bake(line: &Line) -> Result<(), String> {
    // Reports a missing builder before it reads the definition.
    let instance = line.flag("builder").map(instance).transpose()?;
    let text = read_definition(line)?;
    if line.is_set("list") {
        println!("{}", definition::list(&text)?);
        return Ok(());
    }
    let printed = definition::resolve(&text, &line.rest)?;
    if line.is_set("print") {
        let printed = with_outputs(printed, line.flags.get("set").map(Vec::as_slice).unwrap_or_default());
        open_outputs(&printed)?;
        act_on_description(&printed);
        println!("{}", serde_json::to_string_pretty(&printed).unwrap());
        return Ok(());
    }
    let instance = instance.ok_or("the scripted docker-buildx has no default builder: --builder")?;
    let endpoint = instance["Nodes"][0]["Endpoint"].as_str().unwrap();
    let address =
        endpoint.strip_prefix("tcp://").ok_or(format!("the scripted docker-buildx cannot reach {endpoint:?}"))?;
    let mut builder = connect(address)?;
    let hello = json!({
        "argv": std::env::args().collect::<Vec<_>>(),
        "env": std::env::vars().collect::<HashMap<_, _>>(),
        "cwd": std::env::current_dir().unwrap_or_default(),
        "builder": instance["Name"],
        "text": text,
        "targets": definition::built_targets(&printed),
        "definition": printed,
        "docker_config": docker_config(),
        "metadata_file": line.flag("metadata-file"),
        "pid": std::process::id(),
    });
    say(&mut builder, &hello);
    obey(builder, line.flag("metadata-file"))
}

fn read_definition(line: &Line) -> Result<String, String> {
    match line.flag("file").unwrap_or("docker-bake.json") {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|error| error.to_string())?;
            Ok(text)
        }
        path => std::fs::read_to_string(path).map_err(|_| "couldn't find a bake definition".into()),
    }
}

/// Applies the outputs of `--set`, the only field of it that this program imitates.
fn with_outputs(mut printed: Value, overrides: &[String]) -> Value {
    let targets = printed["target"].as_object_mut().unwrap();
    for (name, output) in overrides.iter().filter_map(|value| value.split_once(".output=")) {
        let options = output.split(',').filter_map(|option| option.split_once('='));
        let output: serde_json::Map<String, Value> =
            options.map(|(option, value)| (option.to_owned(), json!(value))).collect();
        for (_, target) in targets.iter_mut().filter(|(target, _)| name == "*" || name == target.as_str()) {
            target["output"] = json!([output]);
        }
    }
    printed
}

/// 0.29 opens the files of outputs even with `--print`.
fn open_outputs(printed: &Value) -> Result<(), String> {
    let targets = printed["target"].as_object().unwrap().values();
    let outputs = targets.filter_map(|target| target["output"].as_array()).flatten();
    for output in outputs.filter(|output| output["type"] == "tar") {
        let file = output["dest"].as_str().unwrap_or_default();
        std::fs::File::create(file).map_err(|_| format!("failed to open open {file}: permission denied"))?;
    }
    Ok(())
}

/// `--print` reaches no builder, so a target's description carries its fault.
fn act_on_description(printed: &Value) {
    for target in printed["target"].as_object().unwrap().values() {
        match target["description"].as_str() {
            Some("scripted: print hangs") => hang(),
            Some("scripted: print floods") => loop {
                println!("{}", "x".repeat(1 << 16));
            },
            Some(said) => {
                if let Some(filling) = said.strip_prefix("scripted: print fills ") {
                    fill(printed, filling);
                }
            }
            None => {}
        }
    }
}

/// Prints a field of `N FIELD UNIT` in every target: a list of N times the unit.
fn fill(printed: &Value, filling: &str) -> ! {
    let mut words = filling.splitn(3, ' ');
    let (n, field, unit) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let list = vec![unit; n.parse().unwrap()].join(",");
    let names = printed["target"].as_object().unwrap().keys();
    let targets: Vec<_> = names
        .map(|name| format!(r#""{name}":{{"context":".","dockerfile":"Dockerfile","{field}":[{list}]}}"#))
        .collect();
    println!(r#"{{"target":{{{}}}}}"#, targets.join(","));
    std::process::exit(0)
}

fn connect(address: &str) -> Result<TcpStream, String> {
    // The real one tries for 20 s, then reports the same error.
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return Ok(stream),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            Err(_) => return Err("context deadline exceeded".into()),
        }
    }
}

fn docker_config() -> Option<String> {
    let dir = std::env::var_os("DOCKER_CONFIG")?;
    std::fs::read_to_string(Path::new(&dir).join("config.json")).ok()
}

fn obey(mut builder: TcpStream, metadata_file: Option<&str>) -> Result<(), String> {
    // TERM and INT end it with 130, as with the remote driver, unless the script says otherwise.
    let is_ended_by_term = Arc::new(AtomicBool::new(true));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, is_ended_by_term.clone()).unwrap();
    }
    let lines = BufReader::new(builder.try_clone().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        let step: Step = serde_json::from_str(&line).unwrap();
        let found = match &step {
            Step::Stderr(text) => {
                write_out(std::io::stderr(), text);
                continue;
            }
            Step::Stdout(text) => {
                write_out(std::io::stdout(), text);
                continue;
            }
            Step::WaitMs(wait_ms) => {
                std::thread::sleep(Duration::from_millis(*wait_ms));
                continue;
            }
            Step::IgnoreTerm(is_ignored) => {
                is_ended_by_term.store(!is_ignored, Ordering::SeqCst);
                continue;
            }
            Step::Hang => hang(),
            Step::Hold => continue,
            Step::Exit(code) => {
                say(&mut builder, &json!({"exit": code}));
                exit(*code);
            }
            Step::Metadata(metadata) => match metadata_file {
                Some(path) => std::fs::write(path, metadata.to_string()).map(|()| String::new()),
                None => continue,
            },
            probe => look(probe),
        };
        say(&mut builder, &json!({"report": report(&step, found)}));
    }
    Err("failed to receive status: rpc error: code = Unavailable desc = error reading from server: EOF".into())
}

/// Tries the step inside the sandbox and returns what it finds.
fn look(step: &Step) -> std::io::Result<String> {
    match step {
        // The child holds stdout and stderr open, as an unwanted grandchild does.
        Step::SpawnSleeper => {
            Command::new(std::env::current_exe()?).arg("sleep").spawn().map(|child| child.id().to_string())
        }
        Step::Connect(address) => TcpStream::connect(address).map(|_| String::new()),
        Step::ConnectUnix(path) => UnixStream::connect(path).map(|_| String::new()),
        Step::Read(path) if path.is_dir() => {
            let names = std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect::<std::io::Result<Vec<_>>>().map(|names| names.join("\n"))
        }
        Step::Read(path) => std::fs::read(path).map(|content| String::from_utf8_lossy(&content).into_owned()),
        Step::Write(path) => {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path)?;
            file.write_all(b"x").map(|()| String::new())
        }
        Step::Exec(path) => {
            Command::new(path).output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        }
        other => unreachable!("{other:?} finds nothing"),
    }
}

fn report(step: &Step, found: std::io::Result<String>) -> Report {
    let step = serde_json::to_value(step).unwrap();
    match found {
        Ok(found) => Report { step, found: Some(found), error: None, errno: None },
        Err(error) => Report { step, found: None, error: Some(error.to_string()), errno: error.raw_os_error() },
    }
}

/// Sends a line to the builder, and ignores a builder that does not read it.
fn say(builder: &mut TcpStream, word: &Value) {
    let _ = builder.write_all(format!("{word}\n").as_bytes());
}

/// Writes, and ignores a reader that has closed, as the real one does with its progress.
fn write_out(mut out: impl Write, text: &str) {
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn hang() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
