//! Malformed standard input and environment, and requests that are none, on the real executables.

use std::io::Write;
use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::answer_nothing;
use crate::node::{Node, Pod, answer, error_code, plugin};

const WHOLE: [(&str, &str); 4] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_NETNS", "/nonexistent"),
];

#[test]
fn malformed_standard_input_has_its_code_and_names_the_key() {
    let node = Node::start();
    let long = vec![b' '; 3 << 20];
    let config = |more: &str| format!(r#"{{"cniVersion":"1.1.0","name":"n",{more}}}"#).into_bytes();
    let documents: [(Vec<u8>, u64, &str); 19] = [
        (b"".to_vec(), 6, "standard input"),
        (b"not json".to_vec(), 6, "standard input"),
        (b"[]".to_vec(), 6, "object"),
        (b"null".to_vec(), 6, "object"),
        (b"{\"name\":\"\xff\"}".to_vec(), 6, "standard input"),
        ("[".repeat(5000).into_bytes(), 6, "standard input"),
        (long, 6, "bytes"),
        (b"{}".to_vec(), 1, "0.1.0"),
        (br#"{"cniVersion":"2.0.0","name":"n"}"#.to_vec(), 1, "2.0.0"),
        (br#"{"cniVersion":"1.1.0"}"#.to_vec(), 7, "name"),
        (br#"{"cniVersion":"1.1.0","name":"../n"}"#.to_vec(), 7, "name"),
        (config(r#""socket":1"#), 7, "socket"),
        (config(r#""socket":"run/cni.sock""#), 7, "socket"),
        (config(r#""stateDir":"""#), 7, "stateDir"),
        (config(r#""disableGC":1"#), 7, "disableGC"),
        (config(r#""cniVersions":[1]"#), 7, "cniVersions"),
        (
            config(r#""prevResult":{"ips":[{"address":"10.0.0.300/8"}]}"#),
            7,
            "prevResult",
        ),
        (
            config(r#""runtimeConfig":{"portMappings":[{"hostPort":99999}]}"#),
            7,
            "portMappings[0].hostPort",
        ),
        (
            config(r#""runtimeConfig":{"infinibandGUID":"c2:11:22:33:44:55:66:77"}"#),
            2,
            "infinibandGUID",
        ),
    ];
    // A namespace that opens, so that what is wrong with the document is the only thing wrong.
    let pod = Pod::new("input");
    let netns = pod.netns_path().to_str().unwrap().to_owned();
    let environment =
        WHOLE.map(|(key, value)| (key, if key == "CNI_NETNS" { netns.as_str() } else { value }));
    for (document, code, part) in documents {
        let output = node.raw(&environment, &document);
        let shown = String::from_utf8_lossy(&document[..document.len().min(80)]).into_owned();
        assert_eq!(error_code(&output), code, "{shown}: {output:?}");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(printed.contains(part), "{shown}: {printed}");
    }
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn a_malformed_environment_is_code_4_and_named() {
    let node = Node::start();
    let document = br#"{"cniVersion":"1.1.0","name":"n"}"#;
    for (name, value) in [
        ("CNI_COMMAND", ""),
        ("CNI_COMMAND", "add"),
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "-c"),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_CONTAINERID", "ä"),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", "sixteen-bytes-xx"),
        ("CNI_IFNAME", "eth/0"),
        ("CNI_IFNAME", "eth 0"),
        ("CNI_IFNAME", "eth:0"),
        ("CNI_IFNAME", "eth\t0"),
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", ".."),
        ("CNI_NETNS", ""),
        ("CNI_ARGS", "K8S_POD_NAME"),
    ] {
        let mut environment: Vec<_> = WHOLE.iter().copied().filter(|(key, _)| *key != name).collect();
        environment.push((name, value));
        let output = node.raw(&environment, document);
        assert_eq!(error_code(&output), 4, "{name}={value:?}: {output:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(name),
            "{output:?}"
        );
    }
    let longest = WHOLE.map(|(key, value)| {
        (
            key,
            if key == "CNI_IFNAME" {
                "fifteen-bytes-x"
            } else {
                value
            },
        )
    });
    assert_eq!(
        error_code(&node.raw(&longest, document)),
        3,
        "only the namespace is missing"
    );
}

fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name == "cni\n").count()
}

#[test]
fn however_many_ask_at_once_the_agent_has_64_threads_for_them() {
    let node = Node::start();
    let socket = node.config().socket;
    let idle: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    node.wait_until("every slot is taken", || threads() == 64);
    // The next one waits for a slot, and gets it when those that asked nothing are gone.
    let pod = Pod::new("waits");
    std::thread::scope(|scope| {
        let add = scope.spawn(|| answer(&node.cni("ADD", &pod, "1.1.0", None)));
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(threads() <= 64 && !add.is_finished());
        drop(idle);
        add.join().unwrap();
        answer_nothing(&node.cni("DEL", &pod, "1.1.0", None));
    });
    node.wait_until("the threads end", || threads() == 0);
}

#[test]
fn a_strangers_bytes_on_the_socket_hurt_nobody_else() {
    let node = Node::start();
    let socket = node.config().socket;
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0, 0, 0, 2, b'{', b'}'],
        &[0xff; 64],
        b"",
    ] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(bytes).unwrap();
    }
    answer_nothing(&node.bare("STATUS", "1.1.0", json!({})));
}

/// It is exec'd for every pod.
#[test]
fn the_plugin_is_smaller_than_two_megabytes() {
    let size = std::fs::metadata(plugin()).unwrap().len();
    println!("podnet-cni has {size} bytes");
    // An unoptimised build carries what it is debugged with.
    let most = if cfg!(debug_assertions) {
        64_000_000
    } else {
        2_000_000
    };
    assert!(size < most, "{size} bytes");
}
