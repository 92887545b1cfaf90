//! Containers from a loaded archive, and what only root can have.

use std::path::Path;

use podnet_lab::image::Store;
use podnet_lab::sandbox::ContainerSpec;

use super::pod::{Pod, podnet};

/// An archive as `docker save` writes it, with the podnet executable as its only program.
fn archive(path: &Path) {
    let mut layer = tar::Builder::new(Vec::new());
    layer.append_path_with_name(podnet(), "bin/app").unwrap();
    let mut passwd = tar::Header::new_gnu();
    let text = b"www:x:33:34::/srv:/none\n";
    passwd.set_size(text.len() as u64);
    passwd.set_mode(0o644);
    passwd.set_uid(0);
    passwd.set_gid(0);
    layer.append_data(&mut passwd, "etc/passwd", &text[..]).unwrap();
    let architecture = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    let config = serde_json::json!({"architecture": architecture, "os": "linux",
        "config": {"Entrypoint": ["app"], "Cmd": ["--version"], "Env": ["PATH=/bin"], "User": "www"}});
    let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": ["own/app:1"], "Layers": ["l.tar"]}]);
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    let files = [
        ("c.json", config.to_string()),
        ("manifest.json", manifest.to_string()),
    ]
    .map(|(n, t)| (n, t.into_bytes()));
    for (name, contents) in files.into_iter().chain([("l.tar", layer.into_inner().unwrap())]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, contents.as_slice()).unwrap();
    }
    tar.finish().unwrap();
}

#[tokio::test]
async fn a_loaded_image_is_the_whole_root_and_stays_as_it_was() {
    let pod = Pod::new().await;
    let path = pod.dir.path().join("app.tar");
    archive(&path);
    let store = Store::new(pod.dir.path().join("images"));
    assert_eq!(store.load(&path).unwrap(), ["docker.io/own/app:1"]);
    let image = store.resolve("own/app:1").unwrap();
    let root = image.root.clone().unwrap();
    let spec = ContainerSpec {
        image,
        command: vec![],
        mounts: vec![podnet_lab::sandbox::Mount {
            source: "/etc".into(),
            target: "/deep/in/it".into(),
            read_only: true,
        }],
        files: vec![("/etc/hosts".into(), "x".into())],
        ..pod.shell("")
    };
    let (state, out) = pod.output_of(spec.clone()).await;
    assert_eq!(state.finished.unwrap().exit_code, 0, "{out}");
    assert!(out.starts_with("stdout F podnet "), "{out}");
    let names: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "the image itself was changed: {names:?}");

    // There is no shell in it.
    let spec = ContainerSpec {
        command: vec!["sh".into()],
        id: "two".into(),
        ..spec
    };
    let error = pod.sandbox.start_container(&spec).await.unwrap_err().to_string();
    assert!(
        error.ends_with("exec: \"sh\": executable file not found in $PATH"),
        "{error}"
    );
}

#[tokio::test]
async fn another_user_has_no_capabilities_and_can_still_write_to_its_output() {
    let pod = Pod::new().await;
    let mut spec = pod.shell("id -u; id -g; echo to >/dev/stdout; cat /proc/self/status");
    (spec.run_as_user, spec.run_as_group) = (Some(1234), Some(567));
    let (_, out) = pod.output_of(spec).await;
    assert!(
        out.starts_with("stdout F 1234\nstdout F 567\nstdout F to\n"),
        "{out}"
    );
    assert!(out.contains("CapEff:\t0000000000000000"), "{out}");
}
