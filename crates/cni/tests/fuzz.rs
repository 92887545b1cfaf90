//! Whatever stands on standard input gets the specification's code and a message that names the cause, and what is
//! understood reaches the agent as it was read.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use podnet_cni::{
    AddResult, AgentRequest, Attachment, CniArgs, CniError, CniVersion, Code, NetworkConfig, PodReference,
    Verb,
};
use podnet_linux::fdpass;
use serde_json::{Value, json};

const SEEDS: [&[u8]; 7] = [
    br#"{"cniVersion":"1.1.0","name":"podnet","type":"podnet-cni","socket":"/s","stateDir":"/d","disableGC":true}"#,
    br#"{"cniVersion":"0.4.0","cniVersions":["0.4.0","1.0.0"],"name":"n","disableCheck":"true","prevResult":{
        "cniVersion":"0.4.0","interfaces":[{"name":"lo","mac":"00:00:00:00:00:00","sandbox":"/n"}],
        "ips":[{"version":"4","address":"127.0.0.1/8","interface":0,"gateway":"10.0.0.1"}],
        "routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1","mtu":1400}],"dns":{"nameservers":["a"],"search":["b"]},"k":1}}"#,
    br#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"ips":["10.0.0.1/24","fd00::1"],"mac":"02:00:00:00:00:01",
        "ipRanges":[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.2","rangeEnd":"10.0.0.9","gateway":"10.0.0.1"}]],
        "dns":{"servers":["10.0.0.1"],"searches":["a"],"options":["b"]}}}"#,
    br#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{
        "portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"10.0.0.1"}],
        "bandwidth":{"ingressRate":1000,"ingressBurst":2000,"egressRate":1000,"egressBurst":2000},
        "io.kubernetes.cri.pod-annotations":{"kubernetes.io/ingress-bandwidth":"10M"}}}"#,
    br#"{"cniVersion":"1.0.0","name":"n","wiring":"bridge","sysctl":{"net.core.somaxconn":"500"},
        "routes":[{"dst":"192.0.2.0/24","gw":"10.0.0.1"}],
        "args":{"cni":{"ips":["10.0.0.7"],"mac":"02:00:00:00:00:01","sysctl":{"net.ipv4.conf.IFNAME.arp_filter":"1"}}},
        "runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"podnet.io/sysctls":"net.ipv4.tcp_rmem=1 2 3"}}}"#,
    br#"{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}"#,
    b"{",
];

const WORDS: [&str; 48] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "socket",
    "stateDir",
    "prevResult",
    "runtimeConfig",
    "cni.dev/valid-attachments",
    "containerID",
    "ifname",
    "interfaces",
    "ips",
    "address",
    "gateway",
    "interface",
    "routes",
    "dst",
    "gw",
    "dns",
    "mac",
    "ipRanges",
    "subnet",
    "rangeStart",
    "portMappings",
    "hostPort",
    "protocol",
    "hostIP",
    "bandwidth",
    "infinibandGUID",
    "args",
    "cni",
    "wiring",
    "netkit",
    "sysctl",
    "podnet.io/sysctls",
    "net.core.somaxconn=1,net.ipv4.tcp_rmem=1",
    "net/../kernel/panic",
    "0.3.0",
    "1.1.0",
    "10.0.0.255/32",
    "fd00::/8",
    "::ffff:10.0.0.1",
    "kubernetes.io/egress-bandwidth",
    "1.5Gi",
    "1e-9",
    "ff:ff:ff:ff:ff:ff",
    "sctp",
];

#[test]
fn fuzz_cni_stdin() {
    podnet_fuzz::run("cni-stdin", &SEEDS, &WORDS, |document| {
        match understand(document) {
            Ok(understood) => understood,
            Err(error) => refused(document, &error),
        }
    });
}

/// Reads all of a document that any verb reads, and checks what came of it.
fn understand(document: &[u8]) -> Result<String, CniError> {
    let config = NetworkConfig::parse(document)?;
    assert!(config.socket.is_absolute() && config.state_dir.is_absolute());
    assert!(!config.name.is_empty());
    let attachment = Attachment::new("c", "eth0").unwrap();
    let previous = config.previous()?;
    if let Some(previous) = &previous {
        passes_on(document, previous);
    }
    let runtime_config = config.runtime_config()?.with(&CniArgs::default())?;
    let wishes = runtime_config.wishes();
    let of_family = |ipv4: bool| runtime_config.ips.iter().filter(move |ip| ip.is_ipv4() == ipv4);
    assert!(of_family(true).count() <= 1 && of_family(false).count() <= 1);
    let settings = config.pod_settings()?.and(&runtime_config.sysctls);
    for path in settings.sysctls_of("eth0").keys() {
        let inside = path.starts_with("net/") && path.split('/').all(|part| !["", ".", ".."].contains(&part));
        assert!(inside, "{path} is not below net");
    }
    for mapping in &runtime_config.port_mappings {
        let colliding = runtime_config
            .port_mappings
            .iter()
            .filter(|other| mapping.collides(other));
        assert_eq!(colliding.count(), 1, "only with itself");
    }
    let add = Verb::Add {
        attachment: attachment.clone(),
        netns: "/n".into(),
        runtime_config: Box::new(runtime_config.clone()),
        pod_settings: Box::new(settings),
    };
    reaches_the_agent(&config, add);
    let check = Verb::Check {
        attachment,
        previous: Box::new(previous.clone().unwrap_or_default()),
        runtime_config: Box::new(runtime_config),
    };
    reaches_the_agent(&config, check);
    let valid = config.valid_attachments()?;
    let alive = valid.as_ref().map(Vec::len);
    reaches_the_agent(
        &config,
        Verb::Gc {
            valid: valid.unwrap_or_default(),
        },
    );
    Ok(format!(
        "{} {wishes:?} {} {:?}",
        config.version,
        previous.is_some(),
        alive.map(|alive| alive.min(2))
    ))
}

fn reaches_the_agent(config: &NetworkConfig, verb: Verb) {
    let request = AgentRequest {
        verb,
        network: config.name.clone(),
        pod: PodReference::default(),
    };
    let bytes = serde_json::to_vec(&request).unwrap();
    assert!(bytes.len() <= fdpass::MAX_LENGTH);
    assert_eq!(serde_json::from_slice::<AgentRequest>(&bytes).unwrap(), request);
}

/// A result of a plugin before us comes out as it came in, in every version, with ours behind it.
fn passes_on(document: &[u8], previous: &AddResult) {
    let document: Value = serde_json::from_slice(document).unwrap();
    let ours: AddResult = serde_json::from_value(json!({
        "interfaces": [{ "name": "eth0", "sandbox": "/n" }],
        "ips": [{ "address": "10.244.0.2/32", "interface": 0 }],
    }))
    .unwrap();
    let chained = ours.behind(previous.clone());
    let interface = chained.ips.last().and_then(|ip| ip.interface).unwrap();
    assert_eq!(chained.interfaces[interface].name, "eth0");
    for version in CniVersion::ALL {
        let printed = chained.to_json(version);
        assert_eq!(printed["cniVersion"], version.as_str());
        for (key, value) in document["prevResult"].as_object().unwrap() {
            let known = ["cniVersion", "interfaces", "ips", "routes", "dns"].contains(&key.as_str());
            assert!(known || printed[key] == *value, "{key} was lost");
        }
        let mut again = AddResult::from_json(&printed).unwrap();
        if version < CniVersion::V1_1_0 {
            for (interface, before) in again.interfaces.iter_mut().zip(&chained.interfaces) {
                interface.mtu = before.mtu;
            }
        }
        assert_eq!(again, chained, "{version}");
    }
}

/// An error has one of the codes for documents, names its key, and prints as the specification says.
fn refused(document: &[u8], error: &CniError) -> String {
    let code = u32::from(error.code);
    let is_object = serde_json::from_slice::<serde_json::Map<String, Value>>(document).is_ok();
    assert_eq!(code == 6, !is_object, "{error}");
    assert!([1, 2, 6, 7].contains(&code), "{error}");
    assert!(code == 6 || error.msg.contains('"'), "no key is named: {error}");
    assert!(
        !error.details.is_empty() || code == 6,
        "nothing says why: {error}"
    );
    let printed = error.to_json(&NetworkConfig::version_text(document));
    assert!(printed["cniVersion"].is_string() && printed["code"] == code);
    // Numbers are indices and values; what is left is the kind of fault.
    let kind: String = error
        .msg
        .chars()
        .filter(|c| !c.is_ascii_digit())
        .take(80)
        .collect();
    format!("{code} {kind}")
}

#[test]
fn fuzz_cni_args() {
    let seeds: [&[u8]; 3] = [
        b"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=a;K8S_POD_UID=1-2",
        b"IP=10.0.0.7/24;MAC=0a:58:0a:00:00:07",
        b";;OTHER=x;=",
    ];
    let words = [
        "IgnoreUnknown",
        "true",
        "0",
        "IP",
        "MAC",
        "fd00::7",
        "::",
        "ff:ff:ff:ff:ff:ff",
        ";",
        "=",
    ];
    podnet_fuzz::run("cni-args", &seeds, &words, |document| {
        let text = String::from_utf8_lossy(document);
        match CniArgs::parse(&text) {
            Ok(args) => {
                assert!(
                    args.ip
                        .is_none_or(|ip| !ip.is_unspecified() && !ip.is_multicast())
                );
                format!("{} {}", args.ip.is_some(), args.mac.is_some())
            }
            Err(error) => {
                assert_eq!(error.code, Code::InvalidEnvironment);
                assert!(error.msg.starts_with("CNI_ARGS has "), "{error}");
                error
                    .msg
                    .chars()
                    .filter(|c| c.is_ascii_alphabetic())
                    .take(30)
                    .collect()
            }
        }
    });
}

/// What the agent reads from its socket: a stranger's bytes are no request, and nothing worse.
#[test]
fn fuzz_agent_request() {
    let seeds: [&[u8]; 3] = [
        br#"{"verb":"ADD","attachment":{"containerId":"c","ifname":"eth0"},"netns":"/n","runtimeConfig":{
            "portMappings":[{"hostPort":1,"containerPort":1,"protocol":"tcp"}],"bandwidth":{"ingress":{"rate":1}}},
            "network":"podnet","pod":{"namespace":"a","name":"b","uid":"c"}}"#,
        br#"{"verb":"GC","valid":[{"containerId":"c","ifname":"eth0"}],"network":"podnet"}"#,
        br#"{"verb":"STATUS","network":"podnet"}"#,
    ];
    let words = [
        "verb",
        "ADD",
        "DEL",
        "CHECK",
        "STATUS",
        "GC",
        "attachment",
        "previous",
        "valid",
    ];
    podnet_fuzz::run(
        "agent-request",
        &seeds,
        &words,
        |document| match serde_json::from_slice::<AgentRequest>(document) {
            Ok(request) => {
                let again = serde_json::to_vec(&request).unwrap();
                assert_eq!(serde_json::from_slice::<AgentRequest>(&again).unwrap(), request);
                format!("{:?}", std::mem::discriminant(&request.verb))
            }
            Err(error) => error
                .to_string()
                .chars()
                .take_while(|c| !c.is_ascii_digit() && *c != '`' && *c != '"')
                .take(60)
                .collect(),
        },
    );
}
