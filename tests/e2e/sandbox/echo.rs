//! The image podnet/echo, asked from a toolbox beside it in the pod.

use std::time::Duration;

use podnet_lab::image::Store;
use podnet_lab::sandbox::ContainerSpec;
use serde_json::Value;

use super::pod::Pod;

/// A pod with an echo server on these arguments, ready to be asked, and a toolbox.
struct Asked {
    pod: Pod,
    toolbox: String,
    server: String,
}

impl Asked {
    async fn with(args: &[&str]) -> Asked {
        let pod = Pod::new().await;
        let toolbox = pod.run("exec sleep 1000").await.id;
        let spec = ContainerSpec {
            image: Store::new("/nowhere").resolve("podnet/echo").unwrap(),
            command: vec![],
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            env: [("POD_NAMESPACE", "default"), ("NODE_NAME", "node1")]
                .map(|(n, v)| (n.into(), v.into()))
                .into(),
            ..pod.shell("")
        };
        let server = pod.sandbox.start_container(&spec).await.unwrap().id;
        let asked = Asked { pod, toolbox, server };
        let ready =
            "for i in $(seq 200); do curl -s http://127.0.0.1:8080/ >/dev/null && exit 0; sleep 0.02; done";
        asked.run(ready).await;
        asked
    }

    async fn run(&self, script: &str) -> String {
        self.pod.exec(&self.toolbox, script).await.1
    }

    async fn python(&self, program: &str) -> String {
        self.run(&format!("python3 - <<'END'\n{program}\nEND")).await
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

#[tokio::test]
async fn http_tells_who_asked_whom_for_what() {
    let asked = Asked::with(&[]).await;
    let told = json(
        &asked
            .run("curl -s -X PUT -H 'X-A: 1' -H 'X-A: 2' 'http://127.0.0.1:8080/a/b?c=d'")
            .await,
    );
    assert_eq!(
        (&told["pod"], &told["namespace"], &told["node"]),
        (&"web-0".into(), &"default".into(), &"node1".into())
    );
    assert!(
        told["client"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{told}"
    );
    assert_eq!(
        (&told["server"], &told["host"]),
        (&"127.0.0.1:8080".into(), &"127.0.0.1:8080".into())
    );
    assert_eq!(
        (&told["method"], &told["path"]),
        (&"PUT".into(), &"/a/b?c=d".into())
    );
    assert_eq!(
        (&told["protocol"], &told["headers"]["x-a"]),
        (&"HTTP/1.1".into(), &"1, 2".into())
    );
    let told = json(
        &asked
            .run("curl -s --http2-prior-knowledge -g 'http://[::1]:8080/'")
            .await,
    );
    assert_eq!(
        (&told["protocol"], &told["server"]),
        (&"HTTP/2.0".into(), &"[::1]:8080".into())
    );
    assert_eq!(told["host"], "[::1]:8080");
}

#[tokio::test]
async fn http_paths_do_what_they_say() {
    let asked = Asked::with(&["--http", "8080", "--http", "9090"]).await;
    let code = async |path: &str| {
        asked
            .run(&format!(
                "curl -s -o /dev/null -w '%{{http_code}} %{{size_download}}' http://127.0.0.1:9090{path}"
            ))
            .await
    };
    assert!(code("/status/503").await.starts_with("503 "));
    assert_eq!(code("/status/204").await, "204 0");
    for bad in ["/status/99", "/status/1000", "/status/x", "/bytes/-1"] {
        assert!(code(bad).await.starts_with("400 "), "{bad}");
    }
    assert_eq!(code("/bytes/100001").await, "200 100001");
    assert_eq!(code("/bytes/0").await, "200 0");
    let took = asked
        .run("curl -s -o /dev/null -w '%{time_total}' http://127.0.0.1:9090/delay/300")
        .await;
    assert!((0.3..2.0).contains(&took.parse::<f64>().unwrap()), "{took}");
    let lines = asked.run("curl -s http://127.0.0.1:9090/stream/3").await;
    assert_eq!(
        lines
            .lines()
            .map(|line| json(line)["path"].clone())
            .collect::<Vec<_>>(),
        ["/stream/3"; 3]
    );
}

#[tokio::test]
async fn tcp_and_udp_answer_line_by_line_from_the_address_that_was_asked() {
    let asked = Asked::with(&["--http", "8080", "--tcp", "7000", "--udp", "7001"]).await;
    let program = "import socket\ns=socket.create_connection(('127.0.0.1',7000))\nf=s.makefile('rw')\n\
                   for word in ('one','two'):\n f.write(word+'\\n'); f.flush(); print(f.readline(),end='')\n\
                   s.shutdown(1); assert f.readline()==''";
    let told: Vec<_> = asked.python(program).await.lines().map(json).collect();
    assert_eq!(
        told.iter()
            .map(|line| line["received"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["one", "two"]
    );
    assert_eq!(
        (&told[0]["protocol"], &told[0]["server"]),
        (&"TCP".into(), &"127.0.0.1:7000".into())
    );
    // A connected socket takes answers from the address it asked only.
    let program = "import socket\nfor f,a in ((socket.AF_INET,'127.0.0.9'),(socket.AF_INET6,'::1')):\n \
                   s=socket.socket(f,socket.SOCK_DGRAM); s.settimeout(5); s.connect((a,7001)); s.send(b'q')\n \
                   print(s.recv(9999).decode(),end='')";
    let told: Vec<_> = asked.python(program).await.lines().map(json).collect();
    assert_eq!(
        (&told[0]["server"], &told[1]["server"]),
        (&"127.0.0.9:7001".into(), &"[::1]:7001".into())
    );
    assert_eq!(
        (&told[0]["protocol"], &told[0]["pod"]),
        (&"UDP".into(), &"web-0".into())
    );
}

#[tokio::test]
async fn websocket_and_grpc_messages_come_back() {
    let asked = Asked::with(&[]).await;
    let program = "import socket,os\ns=socket.create_connection(('127.0.0.1',8080)); s.settimeout(5)\n\
        s.send(b'GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\
        Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n')\n\
        f=s.makefile('rb'); head=[]\nwhile True:\n l=f.readline().strip()\n if not l: break\n head.append(l.lower())\n\
        assert head[0].startswith(b'http/1.1 101'), head\n\
        assert b'sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=' in head, head\n\
        m=b'hello'; s.send(bytes([0x81,0x80|len(m),0,0,0,0])+m); print(f.read(2+len(m)))";
    assert_eq!(asked.python(program).await, "b'\\x81\\x05hello'\n");
    let grpc = "printf '\\0\\0\\0\\0\\3abc' | curl -sv --http2-prior-knowledge -H 'content-type: application/grpc' -H \
                'te: trailers' --data-binary @- http://127.0.0.1:8080/any.Service/Method 2>&1 >/tmp/out; od -An -c /tmp/out";
    let told = asked.run(grpc).await;
    assert!(
        told.contains("< grpc-status: 0") && told.contains("< content-type: application/grpc"),
        "{told}"
    );
    assert!(told.ends_with("\\0  \\0  \\0  \\0 003   a   b   c\n"), "{told}");
}

#[tokio::test]
async fn it_ends_when_asked_and_finishes_what_it_began() {
    let asked = Asked::with(&[]).await;
    let slow = asked.run("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/delay/500");
    let end = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        asked.pod.sandbox.signal(&asked.server, 15).await.unwrap();
        asked
            .pod
            .finished(&asked.server)
            .await
            .finished
            .unwrap()
            .exit_code
    };
    assert_eq!(tokio::join!(slow, end), ("200".to_owned(), 0));
}

#[tokio::test]
async fn a_taken_port_is_told() {
    let asked = Asked::with(&["--http", "8080"]).await;
    let spec = ContainerSpec {
        image: Store::new("/nowhere").resolve("podnet/echo").unwrap(),
        command: vec![],
        ..asked.pod.shell("")
    };
    let (state, out) = asked.pod.output_of(spec.clone()).await;
    assert_eq!(state.finished.unwrap().exit_code, 1);
    assert!(
        out.contains("cannot listen on TCP port 8080") && out.contains("share one port space"),
        "{out}"
    );
    let spec = ContainerSpec {
        id: "bad".into(),
        args: vec!["--http".into(), "0".into()],
        ..spec
    };
    assert_eq!(asked.pod.output_of(spec).await.0.finished.unwrap().exit_code, 2);
    assert!(
        asked
            .run("curl -s http://127.0.0.1:8080/")
            .await
            .contains("web-0")
    );
}
