//! Containers, logs, exec, ends. All of it holds with root and, in a user namespace, without.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use podnet_lab::sandbox::{Attachment, ContainerSpec, ExecSpec, Mount, Sandbox, SandboxError, SandboxSpec};

use super::pod::{Pod, alive, namespaces, podnet, printed, signal, until};

#[tokio::test]
async fn containers_share_network_ipc_and_hostname_but_not_processes_and_files() {
    let pod = Pod::new().await;
    let one = pod.run("sleep 100").await;
    let two = pod.run("sleep 100").await;
    let [one, two] = [one, two].map(|state| namespaces(state.pid.unwrap()));
    let common: BTreeSet<_> = one
        .intersection(&two)
        .map(|id| id.split(':').next().unwrap())
        .collect();
    assert_eq!(common, ["ipc", "net", "uts"].into());
    let mine = namespaces(std::process::id());
    assert!(one.is_disjoint(&mine), "nothing of the machine is shared");
    let (_, out) = pod
        .output("hostname; echo $$; ls /run; touch /etc/made-by-podnet-test /tmp/x")
        .await;
    assert_eq!(out, "stdout F web-0\nstdout F 1\n");
    assert!(!Path::new("/etc/made-by-podnet-test").exists());
}

#[tokio::test]
async fn containers_reach_each_other_on_localhost_and_cannot_both_bind_a_port() {
    let pod = Pod::new().await;
    let serve = "exec python3 -m http.server --bind 127.0.0.1 8000";
    pod.run(serve).await;
    let fetch = "for i in $(seq 100); do curl -sf http://127.0.0.1:8000/etc/hostname >/dev/null && exit 0; \
                 sleep 0.1; done; exit 1";
    assert_eq!(pod.output(fetch).await.0.finished.unwrap().exit_code, 0);
    let (state, out) = pod.output(serve).await;
    assert_eq!(state.finished.unwrap().exit_code, 1);
    assert!(out.contains("Address already in use"), "{out}");
}

#[tokio::test]
async fn ends_are_told_with_code_signal_and_last_words() {
    let pod = Pod::new().await;
    let mut spec =
        pod.shell("echo out; echo err >&2; printf unfinished; printf bye >/dev/termination-log; exit 7");
    spec.termination_message_path = Some("/dev/termination-log".into());
    let (state, out) = pod.output_of(spec).await;
    let finished = state.finished.unwrap();
    assert_eq!(
        (finished.exit_code, finished.signal, finished.message.as_str()),
        (7, None, "bye")
    );
    let lines: BTreeSet<_> = out.lines().collect();
    assert_eq!(
        lines,
        ["stdout F out", "stderr F err", "stdout F unfinished"].into()
    );
    assert!(finished.at >= state.started_at);

    let state = pod.run("exec sleep 100").await;
    pod.sandbox.signal(&state.id, 9).await.unwrap();
    let finished = pod.finished(&state.id).await.finished.unwrap();
    assert_eq!((finished.exit_code, finished.signal), (137, Some(9)));
    assert!(matches!(
        pod.sandbox.signal(&state.id, 9).await,
        Err(SandboxError::NotRunning(_))
    ));
    assert!(matches!(
        pod.sandbox.signal("nothing", 9).await,
        Err(SandboxError::NoContainer(_))
    ));

    let state = pod
        .run("trap 'echo asked; exit 3' TERM; while true; do sleep 0.05; done")
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    pod.sandbox.signal(&state.id, 15).await.unwrap();
    assert_eq!(pod.finished(&state.id).await.finished.unwrap().exit_code, 3);
}

#[tokio::test]
async fn what_cannot_be_started_is_told_in_the_field_s_words() {
    let pod = Pod::new().await;
    let start = async |change: &dyn Fn(&mut ContainerSpec)| {
        let mut spec = pod.shell("");
        change(&mut spec);
        pod.sandbox.start_container(&spec).await.unwrap_err().to_string()
    };
    let told = start(&|spec| spec.command = vec!["no-such-program".into()]).await;
    assert_eq!(
        told,
        "unable to start container process: exec: \"no-such-program\": executable file not found in $PATH"
    );
    let told = start(&|spec| spec.command = vec!["/etc/passwd".into()]).await;
    assert!(
        told.contains("exec: \"/etc/passwd\": permission denied"),
        "{told}"
    );
    let told = start(&|spec| spec.working_dir = Some("/etc/hostname".into())).await;
    assert!(
        told.contains("chdir to cwd (\"/etc/hostname\")") && told.contains("ot a directory"),
        "{told}"
    );
    let told = start(&|spec| spec.command = vec![]).await;
    assert!(told.contains("no command specified"), "{told}");
    let told = start(&|spec| {
        spec.mounts = vec![Mount {
            source: "/no/such".into(),
            target: "/x".into(),
            read_only: false,
        }];
    })
    .await;
    assert!(told.contains("cannot mount /no/such"), "{told}");
    assert_eq!(pod.sandbox.containers().await.unwrap(), []);
}

#[tokio::test]
async fn volumes_files_user_and_directory_are_as_asked() {
    let pod = Pod::new().await;
    let volume = pod.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "from outside").unwrap();
    let mount = |target: &str, read_only| Mount {
        source: volume.clone(),
        target: target.into(),
        read_only,
    };
    let mut spec = pod.shell(
        "cat /data/new/file; echo; touch /data/new/made && echo written; touch /var/run/secrets/x || echo refused; \
         cat /etc/hosts /etc/resolv.conf; pwd; id -u; id -g; echo $A $HOME; touch /usr/x || echo read-only",
    );
    spec.mounts = vec![mount("/data/new", false), mount("/var/run/secrets", true)];
    spec.files = vec![
        ("/etc/hosts".into(), "hosts\n".into()),
        ("/etc/resolv.conf".into(), "resolv\n".into()),
    ];
    spec.working_dir = Some("/usr/share".into());
    spec.env = vec![("A".into(), "b".into())];
    spec.read_only_root = true;
    let (state, out) = pod.output_of(spec.clone()).await;
    let lines: Vec<_> = out
        .lines()
        .filter_map(|line| line.strip_prefix("stdout F "))
        .collect();
    let expected = [
        "from outside",
        "written",
        "refused",
        "hosts",
        "resolv",
        "/usr/share",
        "0",
        "0",
        "b /root",
        "read-only",
    ];
    assert_eq!(lines, expected, "{out}");
    assert_eq!(state.finished.unwrap().exit_code, 0);
    assert!(volume.join("made").exists());
}

#[tokio::test]
async fn exec_runs_inside_the_container_and_gives_its_exit_code() {
    let pod = Pod::new().await;
    let state = pod.run("cd /; echo here >/tmp/inside; exec sleep 100").await;
    until("the file is there", || {
        Path::new(&format!("/proc/{}/root/tmp/inside", state.pid.unwrap())).exists()
    });
    let (code, out) = pod
        .exec(
            &state.id,
            "cat /tmp/inside; hostname; cat /proc/1/comm; echo $HOSTNAME; exit 5",
        )
        .await;
    assert_eq!((code, out.as_str()), (5, "here\nweb-0\nsleep\nweb-0\n"));
    assert_eq!(pod.exec(&state.id, "kill -9 $$").await.0, 137);
    let spec = ExecSpec {
        command: vec!["no-such-program".into()],
        ..ExecSpec::default()
    };
    let error = pod.sandbox.exec(&state.id, &spec).await.unwrap_err().to_string();
    assert!(
        error.ends_with("exec: \"no-such-program\": executable file not found in $PATH"),
        "{error}"
    );

    // Dropping it kills it, and what it started.
    let spec = ExecSpec {
        command: ["sh", "-c", "sleep 4321 & sleep 4321"]
            .map(str::to_owned)
            .to_vec(),
        ..ExecSpec::default()
    };
    let exec = pod.sandbox.exec(&state.id, &spec).await.unwrap();
    let sleeping = || sleepers("4321");
    until("both sleep", || sleeping() == 2);
    assert!(alive(exec.pid()));
    drop(exec);
    until("both are killed", || sleeping() == 0);
    assert!(pod.state(&state.id).await.is_running());

    // The container's end ends its execs.
    let spec = ExecSpec {
        command: vec!["sleep".into(), "100".into()],
        ..ExecSpec::default()
    };
    let mut exec = pod.sandbox.exec(&state.id, &spec).await.unwrap();
    pod.sandbox.signal(&state.id, 9).await.unwrap();
    assert_eq!(exec.wait().await.unwrap(), 137);
    pod.finished(&state.id).await;
    assert!(matches!(
        pod.sandbox.exec(&state.id, &spec).await,
        Err(SandboxError::NotRunning(_))
    ));
}

/// How many processes `sleep SECONDS` there are.
fn sleepers(seconds: &str) -> usize {
    let wanted = format!("sleep\0{seconds}\0");
    let processes = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path().join("cmdline")));
    processes
        .filter(|path| std::fs::read_to_string(path).is_ok_and(|line| line == wanted))
        .count()
}

#[tokio::test]
async fn exec_with_a_terminal_has_it_as_controlling_terminal() {
    let pod = Pod::new().await;
    let state = pod.run("exec sleep 100").await;
    let (master, slave) = terminal();
    let clone = |fd: &OwnedFd| Some(fd.try_clone().unwrap());
    let spec = ExecSpec {
        command: ["sh", "-c", "test -t 0 && test -t 1 && echo yes >/dev/tty; exit 4"]
            .map(str::to_owned)
            .to_vec(),
        stdin: clone(&slave),
        stdout: clone(&slave),
        stderr: Some(slave),
        tty: true,
        ..ExecSpec::default()
    };
    let mut exec = pod.sandbox.exec(&state.id, &spec).await.unwrap();
    assert_eq!(exec.wait().await.unwrap(), 4);
    let mut out = [0; 64];
    let count = std::fs::File::from(master).read(&mut out).unwrap();
    assert_eq!(&out[..count], b"yes\r\n");
}

fn terminal() -> (OwnedFd, OwnedFd) {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let master = openpt(flags).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
    (master, slave)
}

#[tokio::test]
async fn attach_copies_output_and_feeds_stdin() {
    let pod = Pod::new().await;
    for tty in [false, true] {
        let mut spec = pod.shell("echo early; read line; echo got $line; read line || echo end");
        (spec.stdin, spec.tty) = (true, tty);
        let state = pod.sandbox.start_container(&spec).await.unwrap();
        until("it says something", || printed(&spec.log_path).contains("early"));
        let (mut reader, writer) = std::io::pipe().unwrap();
        let to = Attachment {
            stdout: Some(writer.into()),
            ..Attachment::default()
        };
        let attached = pod.sandbox.attach_container(&state.id, &to).await.unwrap();
        drop(to);
        assert_eq!(attached.tty, tty);
        let mut stdin = std::fs::File::from(attached.stdin.unwrap());
        stdin.write_all(b"words\n").unwrap();
        until("it answers", || printed(&spec.log_path).contains("got words"));
        if tty {
            stdin.write_all(b"\x04").unwrap();
        } else {
            drop(stdin);
            pod.sandbox.close_stdin(&state.id).await.unwrap();
        }
        pod.finished(&state.id).await;
        let mut out = String::new();
        reader.read_to_string(&mut out).unwrap();
        assert!(out.replace('\r', "").ends_with("got words\nend\n"), "{out:?}");
    }
}

#[tokio::test]
async fn in_a_shared_pid_namespace_pause_is_pid_1_and_reaps_orphans() {
    let pod = Pod::with(|spec| spec.share_process_namespace = true).await;
    let one = pod.run("(sleep 0.2 &) ; exec sleep 100").await;
    let (_, out) = pod
        .output("cat /proc/1/comm; ps -e -o comm= | grep -c sleep")
        .await;
    assert!(out.starts_with("stdout F podnet\nstdout F "), "{out}");
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(
        pod.exec(&one.id, "ps -e -o stat= | grep -c Z").await.1,
        "0\n",
        "a zombie is left"
    );

    // What a container leaves behind ends with it; the other container stays.
    let state = pod.run("setsid sleep 5432 & sleep 0.1; exit 0").await;
    pod.finished(&state.id).await;
    until("its orphan is killed", || sleepers("5432") == 0);
    assert!(pod.state(&one.id).await.is_running());
}

#[tokio::test]
async fn the_end_of_pause_is_the_end_of_the_pod() {
    for shared in [false, true] {
        let pod = Pod::with(|spec| spec.share_process_namespace = shared).await;
        let state = pod.run("sleep 100 & exec sleep 100").await;
        let spec = ExecSpec {
            command: vec!["sleep".into(), "100".into()],
            ..ExecSpec::default()
        };
        let exec = pod.sandbox.exec(&state.id, &spec).await.unwrap();
        let watch = pod.sandbox.clone();
        watch.changed().await.unwrap();
        let watching = tokio::spawn(async move { watch.changed().await });
        signal(pod.sandbox.pid(), "KILL");
        until("all are gone", || {
            !alive(state.pid.unwrap()) && !alive(exec.pid())
        });
        assert!(matches!(watching.await.unwrap(), Err(SandboxError::Gone { .. })));
        assert!(matches!(
            pod.sandbox.containers().await,
            Err(SandboxError::Gone { .. })
        ));
        assert!(matches!(
            Sandbox::attach(pod.sandbox.dir()).await,
            Err(SandboxError::Gone { .. })
        ));
    }
}

#[tokio::test]
async fn a_new_client_finds_what_the_old_one_started() {
    let pod = Pod::new().await;
    let running = pod.run("exec sleep 100").await;
    let (ended, _) = pod.output("exit 6").await;
    let again = Sandbox::attach(pod.sandbox.dir()).await.unwrap();
    assert_eq!(again.pid(), pod.sandbox.pid());
    assert_eq!(again.containers().await.unwrap(), [running, ended]);
    tokio::time::timeout(Duration::from_secs(5), again.changed())
        .await
        .expect("it has missed changes")
        .unwrap();
}

#[tokio::test]
async fn stop_leaves_no_process_and_no_mount() {
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let pod = Pod::new().await;
    let state = pod.run("trap '' TERM; sleep 100 & sleep 100").await;
    pod.sandbox.stop().await.unwrap();
    assert!(!alive(pod.sandbox.pid()) && !alive(state.pid.unwrap()));
    assert_eq!(mounts(), before);
    pod.sandbox.stop().await.unwrap();
    std::fs::remove_dir_all(pod.sandbox.dir()).unwrap();

    // A polite request does the same.
    let pod = Pod::new().await;
    let state = pod.run("exec sleep 100").await;
    signal(pod.sandbox.pid(), "TERM");
    until("all are gone", || {
        !alive(pod.sandbox.pid()) && !alive(state.pid.unwrap())
    });
}

#[tokio::test]
async fn a_host_network_pod_stays_in_the_caller_s_network() {
    let pod = Pod::with(|spec| spec.host_network = true).await;
    let state = pod.run("exec sleep 100").await;
    let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(of(state.pid.unwrap()), of(std::process::id()));
    assert_eq!(
        std::fs::read_link(pod.sandbox.netns_path()).unwrap(),
        of(std::process::id())
    );
}

#[tokio::test]
async fn a_bad_sysctl_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let spec = |sysctls: &[(&str, &str)]| SandboxSpec {
        dir: dir.path().join("pod"),
        sysctls: sysctls
            .iter()
            .map(|&(name, value)| (name.into(), value.into()))
            .collect(),
        hostname: "x".into(),
        ..SandboxSpec::default()
    };
    let error = Sandbox::create_with(&podnet(), &spec(&[("net.no.such", "1")]))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("net/no/such"), "{error}");
    let good = spec(&[("net.ipv4.ip_forward", "1")]);
    let sandbox = Sandbox::create_with(&podnet(), &good).await.unwrap();
    sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn starting_is_quick() {
    let start = Instant::now();
    let pod = Pod::new().await;
    let sandbox = start.elapsed();
    let start = Instant::now();
    for _ in 0..10 {
        pod.run("exec sleep 100").await;
    }
    let container = start.elapsed() / 10;
    eprintln!("sandbox {sandbox:?}, container {container:?}");
    // Far above what it takes, for a busy machine.
    assert!(sandbox < Duration::from_secs(1) && container < Duration::from_millis(500));
}
