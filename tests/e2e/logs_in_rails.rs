//! Extracts the model, the channel and the page from `docs/logs-in-rails.md` and runs them while a worker builds: Action Cable in
//! Ruby, and the page in Node.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::coming_from_ruby::{Application, BUILD, block, script, snippet};
use crate::peer::made;

/// Lines that the step prints, within about ten seconds.
const N_LINES: usize = 300;

/// An application with the documents' model and channel, and a build whose step prints for some seconds.
fn application() -> Application {
    let mut application = Application::open();
    application.add(&snippet("# app/models/build_log.rb"));
    application.add(&snippet("# app/models/build.rb, for its log"));
    let print =
        format!("RUN i=0; while [ $i -lt {N_LINES} ]; do i=$((i+1)); echo \"<b>line $i</b>\"; sleep 0.03; done");
    let dockerfile = application.harness.dockerfile(&print);
    application.sha = application.harness.commit("voting-app", &[("vote/Dockerfile", &dockerfile)]);
    let mut row = application.row(BUILD);
    row["sha"] = json!(application.sha);
    row["images"][0]["tags"] = json!([application.harness.reference("vote", &application.sha)]);
    application.keep(&json!({"4711": row}));
    application
}

/// Starts the documents' channel on a port.
fn serve(application: &Application, port: u16) -> Child {
    // Only this process has Action Cable, so Sidekiq's processes must not load the channel.
    let channel = application.harness.home.path().join("build_log_channel.rb");
    std::fs::write(&channel, snippet("# app/channels/build_log_channel.rb")).unwrap();
    let log = application.harness.home.path().join("cable.log");
    let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
    let mut ruby = application.ruby();
    ruby.arg(script()).arg("cable").arg(port.to_string()).arg(channel);
    ruby.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

/// The documents' page in Node, showing the log of this build.
fn open_page(application: &Application, build: u64, port: u16) -> Child {
    let write = |name: &str, text: &str| -> PathBuf {
        let path = application.harness.home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let html = block("erb", "<%# app/views/builds/_log.html.erb %>").replace("<%= build.id %>", &build.to_string());
    let html = write("log.html", html.split_once('\n').unwrap().1);
    let controller = write("controller.js", &block("js", "// app/javascript/controllers/build_log_controller.js"));
    let mut page = Command::new(made("page"));
    page.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/ruby/page.js")).arg(html).arg(controller);
    page.arg(format!("ws://127.0.0.1:{port}/cable"));
    page.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

/// What the page shows when the build is over.
async fn shown(page: Child) -> Value {
    let shown = tokio::task::spawn_blocking(|| page.wait_with_output()).await.unwrap().unwrap();
    assert!(shown.status.success());
    serde_json::from_slice(&shown.stdout).unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_shows_each_line_once_over_many_connections() {
    let mut application = application();
    let port = free_port();
    let mut cable = serve(&application, port);
    // Opened before the build begins.
    let page = open_page(&application, BUILD, port);
    let _worker = application.worker("builds", "");
    application.call(&snippet("BuildJob.perform_async(build.to_sidebake)"));

    // The page also loses its server, in the middle of the step.
    tokio::time::sleep(Duration::from_secs(6)).await;
    cable.kill().unwrap();
    cable.wait().unwrap();
    application.processes.push(serve(&application, port));

    let shown = shown(page).await;
    assert_eq!(shown["state"], "succeeded", "{shown:#}\n{}", application.harness.logs());
    let steps = shown["steps"].as_array().unwrap();
    let step = steps.iter().find(|step| step[0].as_str().unwrap().contains("RUN i=0")).expect("the step is shown");
    let lines: Vec<&str> = step[1].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let (end, printed) = lines.split_last().unwrap();
    let expected: Vec<String> = (1..=N_LINES).map(|number| format!("<b>line {number}</b>")).collect();
    assert_eq!(printed, expected);
    assert!(end.starts_with("done in "), "{end}");
    let all = shown["steps"].to_string();
    assert!(!all.contains("was removed") && !all.contains("missing"), "{all}");
    let log = std::fs::read_to_string(application.harness.home.path().join("cable.log")).unwrap();
    let n_connections = log.matches("Successfully upgraded to WebSocket").count();
    assert!(n_connections > 3, "the page connected once: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_shows_no_log_of_another_accounts_build() {
    let mut application = application();
    let mut row = application.row(BUILD);
    row["account"] = json!("umbrella");
    application.keep(&json!({"4711": row}));
    let port = free_port();
    application.processes.push(serve(&application, port));

    for build in [BUILD, 1] {
        let shown = shown(open_page(&application, build, port)).await;
        assert_eq!(shown["state"], "This build does not exist, or you cannot see it.", "{build}");
    }
}
