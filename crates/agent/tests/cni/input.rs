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
    let documents: Vec<(Vec<u8>, u64, &str)> = vec![
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
        (config(r#""cniVersions":"1.1.0""#), 7, "cniVersions"),
        (config(r#""wiring":"macvlan""#), 7, "wiring"),
        (config(r#""routes":[{"dst":"0.0.0.0"}]"#), 7, "routes"),
        (
            config(r#""sysctl":{"kernel.panic":"1"}"#),
            7,
            "sysctl.kernel.panic",
        ),
        (config(r#""args":7"#), 7, "args"),
        (config(r#""args":{"cni":[]}"#), 7, "args.cni"),
        (config(r#""args":{"cni":{"ips":["x"]}}"#), 7, "args.cni.ips[0]"),
        (config(r#""args":{"cni":{"mac":"x"}}"#), 7, "args.cni.mac"),
        (
            config(r#""runtimeConfig":{"ips":["10.244.1.7","10.244.1.8"]}"#),
            7,
            "10.244.1.7 and 10.244.1.8",
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
fn malformed_standard_input_has_its_code_whatever_the_verb() {
    let node = Node::start();
    for verb in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
        for (document, code) in [
            ("", 6),
            ("{", 6),
            ("[]", 6),
            (r#"{"cniVersion":"9.9.9","name":"n"}"#, 1),
            (r#"{"cniVersion":"1.1.0","name":"a/b"}"#, 7),
            (r#"{"cniVersion":1,"name":"n"}"#, 7),
        ] {
            let environment =
                WHOLE.map(|(key, value)| (key, if key == "CNI_COMMAND" { verb } else { value }));
            let output = node.raw(&environment, document.as_bytes());
            assert_eq!(error_code(&output), code, "{verb} {document}: {output:?}");
        }
    }
    for list in [
        "7",
        r#"[{"containerID":"a"}]"#,
        r#"[{"containerID":"../a","ifname":"eth0"}]"#,
    ] {
        let list: serde_json::Value = serde_json::from_str(list).unwrap();
        let output = node.bare("GC", "1.1.0", json!({ "cni.dev/valid-attachments": list }));
        assert_eq!(error_code(&output), 7, "{list}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("cni.dev/valid-attachments"));
    }
}

#[test]
fn a_malformed_annotation_is_code_7_and_named() {
    let node = Node::start();
    for (key, text) in [
        ("kubernetes.io/ingress-bandwidth", ""),
        ("kubernetes.io/ingress-bandwidth", "fast"),
        ("kubernetes.io/ingress-bandwidth", "-1M"),
        ("kubernetes.io/egress-bandwidth", "999"),
        ("kubernetes.io/egress-bandwidth", "2P"),
        ("kubernetes.io/egress-bandwidth", "1e300"),
        ("podnet.io/ips", ""),
        ("podnet.io/ips", "10.244.1.777"),
        ("podnet.io/ips", "[7]"),
        ("podnet.io/ips", "10.244.1.7,10.244.1.8"),
        ("cni.projectcalico.org/ipAddrs", "{"),
        ("podnet.io/sysctls", ""),
        ("podnet.io/sysctls", "net.core.somaxconn"),
        ("podnet.io/sysctls", "{\"net.core.somaxconn\":1}"),
        ("podnet.io/sysctls", "kernel.panic=1"),
        ("podnet.io/sysctls", "net/../kernel/panic=1"),
    ] {
        let more = json!({ "runtimeConfig": { "io.kubernetes.cri.pod-annotations": { key: text } } });
        let output = node.cni_with("ADD", &Pod::new("annotated"), "1.1.0", more);
        assert_eq!(error_code(&output), 7, "{key}={text:?}: {output:?}");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(printed.contains(key), "{key}={text:?}: {printed}");
    }
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn a_state_directory_that_fails_is_code_5_and_named() {
    let node = Node::start();
    let (held, new) = (Pod::new("held"), Pod::new("new"));
    answer(&node.cni("ADD", &held, "1.1.0", None));
    let leases = node.config().state_dir.join("leases");
    let away = leases.with_extension("away");
    std::fs::rename(&leases, &away).unwrap();
    std::fs::write(&leases, "no directory").unwrap();
    for (verb, pod) in [("ADD", &new), ("DEL", &held)] {
        let output = node.cni(verb, pod, "1.1.0", None);
        assert_eq!(error_code(&output), 5, "{output:?}");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(printed.contains(leases.to_str().unwrap()), "{printed}");
        assert!(
            printed.contains("see that the state directory is writable"),
            "{printed}"
        );
    }
    std::fs::remove_file(&leases).unwrap();
    std::fs::rename(&away, &leases).unwrap();
    assert_eq!(
        (node.leases(), node.pod_links()),
        (1, 1),
        "what failed left nothing"
    );
    answer_nothing(&node.cni("DEL", &held, "1.1.0", None));
    node.settle();
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
        ("CNI_ARGS", "OTHER=x"),
        ("CNI_ARGS", "IP=10.0.0"),
        ("CNI_ARGS", "MAC=ff:ff:ff:ff:ff:ff"),
        ("CNI_ARGS", "IgnoreUnknown=2"),
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

#[test]
fn every_code_comes_with_its_cause_and_what_to_do() {
    let node = Node::start();
    let pod = Pod::new("codes");
    let result = answer(&node.cni("ADD", &pod, "1.1.0", None));
    let last = Pod::new("last");
    let mut other = result.clone();
    other["interfaces"][1]["mtu"] = json!(1400);
    let document = |more: &str| format!(r#"{{"cniVersion":"1.1.0","name":"n"{more}}}"#).into_bytes();
    let namespace = node.netns_path();
    let with = |key: &'static str, value: &'static str| {
        WHOLE.map(|pair| if pair.0 == key { (key, value) } else { pair })
    };
    let state = node.config().state_dir.join("leases");
    let ask = |code: u64| match code {
        1 => node.bare("STATUS", "1.0.0", json!({})),
        2 => node.cni_with(
            "ADD",
            &Pod::new("guid"),
            "1.1.0",
            json!({ "runtimeConfig": { "infinibandGUID": "c2:11:22:33:44:55:66:77" } }),
        ),
        3 => node.raw(&WHOLE, &document("")),
        4 => node.raw(&with("CNI_IFNAME", ""), &document("")),
        5 => {
            std::fs::rename(&state, state.with_extension("away")).unwrap();
            std::fs::write(&state, "").unwrap();
            let output = node.cni("DEL", &pod, "1.1.0", None);
            std::fs::remove_file(&state).unwrap();
            std::fs::rename(state.with_extension("away"), &state).unwrap();
            output
        }
        6 => node.raw(&WHOLE, b"[]"),
        7 => node.bare("GC", "1.1.0", json!({})),
        8 => node.cni_in("ADD", "c", &namespace, "1.1.0"),
        11 => {
            node.set_ranges(&["10.244.1.7/32"]);
            answer(&node.cni("ADD", &last, "1.1.0", None));
            node.cni("ADD", &Pod::new("none-left"), "1.1.0", None)
        }
        50 => node.bare("STATUS", "1.1.0", json!({})),
        51 => {
            node.limit("the kernel refused a route");
            node.bare("STATUS", "1.1.0", json!({}))
        }
        100 => node.cni_with(
            "ADD",
            &Pod::new("refused"),
            "1.1.0",
            json!({ "sysctl": { "net.no.such": "1" } }),
        ),
        _ => node.cni("CHECK", &pod, "1.1.0", Some(&other)),
    };
    for code in [1, 2, 3, 4, 5, 6, 7, 8, 101, 11, 50, 51, 100] {
        let output = ask(code);
        assert_eq!(error_code(&output), code, "{output:?}");
        let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        println!("{code}: {}: {}", error["msg"], error["details"]);
        for part in ["msg", "details"] {
            assert!(
                error[part].as_str().is_some_and(|text| text.len() > 10),
                "{error}"
            );
        }
    }
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
