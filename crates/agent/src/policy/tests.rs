use std::path::PathBuf;

use clap::Parser;
use tempfile::TempDir;

use super::*;

const SHOP: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: sales}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: host, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: c, image: host, ports: [{name: sql, containerPort: 5432}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: sql}]
";

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn files(texts: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (i, text) in texts.iter().enumerate() {
        std::fs::write(dir.path().join(format!("{i}.yaml")), text).unwrap();
    }
    dir
}

/// What a command line prints, and whether all is well; or what is wrong.
fn ask(words: &[&str], texts: &[&str]) -> Result<(String, bool), String> {
    let dir = files(texts);
    let dir = dir.path().to_str().unwrap();
    let words = [&["policy"], words, &["-f", dir]].concat();
    let answer = match Cli::parse_from(words).args.command {
        Command::Explain(args) => run_explain(&args),
        Command::Matrix(args) => run_matrix(&args),
        Command::Lint(args) => run_lint(&args),
    };
    let answer = answer.map_err(|report| format!("{report:?}"))?;
    Ok((answer.text, answer.fine))
}

/// A report in one line, without what it is wrapped with.
fn words(report: &str) -> String {
    let words = report.split_whitespace().filter(|word| *word != "│");
    words.collect::<Vec<_>>().join(" ")
}

fn explained(from: &str, to: &str) -> (String, bool) {
    ask(&["explain", "-n", "shop", from, to], &[SHOP]).unwrap()
}

#[test]
fn explain_names_the_rule_that_decides_and_what_would_change_it() {
    let (text, fine) = explained("web", "db:5432");
    assert!(fine);
    assert_eq!(
        text,
        "shop/web to shop/db tcp 5432: allowed\n  \
         sent by shop/web: allowed: no policy is about it\n  \
         received by shop/db: allowed: NetworkPolicy shop/db ingress 0\n    \
         decides    accept pods{kubernetes.io/metadata.name=shop; app=web} ports tcp/5432 of NetworkPolicy shop/db \
         ingress 0\n  \
         without NetworkPolicy shop/db ingress 0 its ingress were denied: no rule of NetworkPolicy shop/db accepts it\n"
    );
    let (text, fine) = explained("web", "db:80/udp");
    assert!(!fine);
    assert!(text.starts_with("shop/web to shop/db udp 80: denied\n"), "{text}");
    assert!(
        text.contains("NetworkPolicy shop/db ingress 0 accepts 10.244."),
        "{text}"
    );
    assert!(text.contains("but not udp 80: add the port to it\n"), "{text}");
}

#[test]
fn ends_are_pods_addresses_and_names() {
    for (from, to, fine) in [
        ("shop/web", "shop/db:sql", true),
        ("203.0.113.7", "db:5432", false),
        ("2001:db8::7", "db:5432", false),
        ("[2001:db8::7]", "db:5432", false),
        ("web", "203.0.113.7:443", true),
        ("web", "[2001:db8::7]:443/udp", true),
        ("db", "www.example.com=203.0.113.7:443", true),
        // Without a port: sql, and ping.
        ("web", "db", false),
    ] {
        assert_eq!(explained(from, to).1, fine, "{from} {to}");
    }
    for (from, to, why) in [
        ("nobody", "db:80", "no pod shop/nobody"),
        ("web", "db:http", "no name the pod gives to one"),
        ("web", "db:0", "is no port"),
        ("web", "db:80/icmp", "supported are TCP, UDP and SCTP"),
        (
            "web",
            "www.example.com=here:80",
            "is no address that www.example.com could stand for",
        ),
    ] {
        let error = ask(&["explain", "-n", "shop", from, to], &[SHOP]).unwrap_err();
        let error = words(&error);
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn explain_prints_json() {
    let (text, _) = ask(
        &["explain", "-n", "shop", "web", "db:5432", "-o", "json"],
        &[SHOP],
    )
    .unwrap();
    let answers: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answers.as_array().unwrap().len(), 2, "a family each");
    assert_eq!(answers[1]["family"], "IPv6");
    assert_eq!(answers[0]["ingress"]["reason"], "NetworkPolicy shop/db ingress 0");
}

#[test]
fn the_matrix_is_a_table_json_and_a_drawing() {
    let (text, fine) = ask(&["matrix"], &[SHOP]).unwrap();
    assert!(fine);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<_> = text.lines().map(words).collect();
    assert_eq!(
        lines[0].join(" "),
        "FROM \\ TO shop/db tcp 5432 shop/web tcp 8080"
    );
    assert_eq!(lines[1], ["shop/db", "-", "yes"]);
    assert_eq!(lines[2], ["shop/web", "yes", "-"]);
    assert_eq!(lines[3], ["(outside)", "no", "yes"]);
    let (text, _) = ask(&["matrix", "-o", "json", "--port", "80"], &[SHOP]).unwrap();
    let cells: serde_json::Value = serde_json::from_str(&text).unwrap();
    let denied: Vec<_> = cells
        .as_array()
        .unwrap()
        .iter()
        .filter(|cell| cell["verdict"] == "denied")
        .collect();
    assert_eq!(denied.len(), 2);
    assert_eq!(denied[0]["why"], "no rule of NetworkPolicy shop/db accepts it");
    let (text, _) = ask(&["matrix", "-o", "svg"], &[SHOP]).unwrap();
    assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
    assert_eq!(text.matches("<title>").count(), 6);
    assert!(text.contains(
        "<title>(outside) to shop/db tcp 5432: denied: no rule of NetworkPolicy shop/db accepts it</title>"
    ));
    assert!(
        ask(
            &["matrix"],
            &["apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n"]
        )
        .is_err()
    );
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

fn fence(tier: &str, rules: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: fence}}\n\
         spec: {{tier: {tier}, priority: 1, subject: {{namespaces: {{}}}}, {rules}}}\n"
    )
}

#[test]
fn lint_finds_what_is_probably_not_meant() {
    assert_eq!(ask(&["lint"], &[SHOP]).unwrap(), (String::new(), true));
    let web = "podSelector: {matchLabels: {app: web}}";
    for (text, expected) in [
        (
            policy("typo", "{podSelector: {matchLabels: {app: wed}}}"),
            "NetworkPolicy shop/typo: selects-nothing: it is about pods{kubernetes.io/metadata.name=shop; app=wed}, and \
             there is no such pod",
        ),
        (
            policy(
                "peer",
                &format!(
                    "{{{web}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{team: x}}}}}}]}}]}}"
                ),
            ),
            "NetworkPolicy shop/peer: peer-matches-nothing: spec.ingress[0]: pods{team=x; *} is nobody there is",
        ),
        (
            policy(
                "port",
                &format!("{{{web}, ingress: [{{ports: [{{port: https}}]}}]}}"),
            ),
            "NetworkPolicy shop/port: no-such-port: spec.ingress[0]: none of its pods names a port \"https\"",
        ),
        (
            policy(
                "port",
                &format!("{{{web}, policyTypes: [Egress], egress: [{{ports: [{{port: https}}]}}, {{}}]}}"),
            ),
            "NetworkPolicy shop/port: no-such-port: spec.egress[0]: no pod names a port \"https\"",
        ),
        (
            policy(
                "bits",
                &format!("{{{web}, ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.1/8}}}}]}}]}}"),
            ),
            "NetworkPolicy shop/bits: unreadable: spec.ingress[0].from[0].ipBlock: 10.0.0.1/8 has bits set beyond its \
             prefix; write 10.0.0.0/8; this peer matches nobody",
        ),
        (
            policy(
                "twice",
                &format!(
                    "{{{web}, ingress: [{{ports: [{{port: 80, endPort: 90}}]}}, {{ports: [{{port: 85}}]}}]}}"
                ),
            ),
            "NetworkPolicy shop/twice: shadowed: spec.ingress[1]: it never decides: NetworkPolicy shop/twice ingress 0 \
             matches all of it before",
        ),
        (
            fence(
                "Admin",
                "ingress: [{action: Deny, from: [{namespaces: {}}]}, {name: late, action: Accept, from: [{pods: \
                 {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}]}]",
            ),
            "ClusterNetworkPolicy fence: shadowed: spec.ingress[1] (late): it never decides: ClusterNetworkPolicy fence \
             ingress 0 matches all of it before",
        ),
        (
            policy("mute", &format!("{{{web}, policyTypes: [Egress]}}")),
            "NetworkPolicy shop/mute: cuts-dns: shop/web cannot ask the cluster's DNS for names; accept udp and tcp 53 \
             between them and kube-system/kube-dns, if names are needed",
        ),
    ] {
        let (found, fine) = ask(&["lint"], &[SHOP, &text]).unwrap();
        assert!(
            !fine && found.lines().any(|line| line == expected),
            "{expected}\nis not in\n{found}"
        );
    }
}

#[test]
fn lint_says_nothing_of_what_is_meant() {
    let web = "podSelector: {matchLabels: {app: web}}";
    let dns = "{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: \
               {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]}";
    let own = "apiVersion: v1\nkind: Pod\nmetadata: {name: dns-1, namespace: kube-system, labels: {k8s-app: kube-dns}}\n\
               spec: {containers: []}\n";
    let may_ask = policy(
        "asks",
        &format!("{{{web}, policyTypes: [Egress], egress: [{dns}]}}"),
    );
    assert_eq!(ask(&["lint"], &[SHOP, own, &may_ask]).unwrap().0, "");
    // A hole makes room for the second rule, and Pass ends no later tier.
    let hole = policy(
        "hole",
        &format!(
            "{{{web}, ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}}}]}}, {{from: [{{ipBlock: \
             {{cidr: 10.1.2.0/24}}}}]}}]}}"
        ),
    );
    let pass = fence("Admin", "ingress: [{action: Pass, from: [{namespaces: {}}]}]");
    assert_eq!(ask(&["lint"], &[SHOP, &hole, &pass]).unwrap().0, "");
}

#[test]
fn what_a_cluster_would_not_take_is_refused_with_its_line() {
    for (text, why) in [
        (
            policy("typo", "\n  podSelector: {}\n  ingres: all"),
            "0.yaml:6: NetworkPolicy has no field spec.ingres",
        ),
        (
            policy("type", "\n  podSelector: all"),
            "0.yaml:4: NetworkPolicy cannot be read",
        ),
        (
            [policy("a", "{podSelector: {}}"), policy("a", "{podSelector: {}}")].join("---\n"),
            "0.yaml:8: a second NetworkPolicy a",
        ),
        ("a: [".to_owned(), "not valid YAML"),
    ] {
        let error = ask(&["lint"], &[&text]).unwrap_err();
        let error = words(&error);
        assert!(error.contains(why), "{error} lacks {why}");
    }
    let missing = load(&[PathBuf::from("/nowhere/at/all.yaml")], "default", &[]).unwrap_err();
    assert!(format!("{missing:?}").contains("/nowhere/at/all.yaml"));
}

#[test]
fn what_is_assumed_is_said() {
    let dir = files(&[
        SHOP,
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: old}\n",
    ]);
    let ranges = ["10.244.0.0/16".parse().unwrap()];
    let loaded = load(&[dir.path().to_owned()], "default", &ranges).unwrap();
    let notes: Vec<_> = loaded.notes.into_iter().collect();
    assert_eq!(
        notes,
        [
            "AdminNetworkPolicy old is left out: write it as a ClusterNetworkPolicy, which replaces it",
            "pods without an address were given one of 10.244.0.0/16; rules about addresses may see them otherwise",
        ]
    );
}
