//! The same without root: everything in a user namespace in which one user exists.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use super::pod::{Pod, podnet};

const NOBODY: u32 = 65534;

#[test]
fn all_of_it_holds_in_a_user_namespace() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let scratch = dir.path().join("tmp");
    fs::create_dir(&scratch).unwrap();
    chown(&scratch, Some(NOBODY), Some(NOBODY)).unwrap();
    // Nobody may not be allowed to where cargo builds.
    let [tests, program] = ["tests", "podnet"].map(|name| dir.path().join(name));
    fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    fs::copy(podnet(), &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .args([
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
        ])
        .arg("--kill-child")
        .arg(&tests)
        .args([
            "sandbox::containers::",
            "sandbox::echo::",
            "sandbox::rootless::inside",
            "--include-ignored",
        ])
        .env("PODNET", &program)
        .env("TMPDIR", &scratch)
        .current_dir("/")
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{out}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        out.contains("test sandbox::rootless::inside_another_user_is_told_not_to_exist ... ok"),
        "{out}"
    );
}

#[tokio::test]
#[ignore = "run by the test above in a user namespace"]
async fn inside_another_user_is_told_not_to_exist() {
    let pod = Pod::new().await;
    let mut spec = pod.shell("id");
    spec.run_as_user = Some(1000);
    let error = pod.sandbox.start_container(&spec).await.unwrap_err().to_string();
    assert!(
        error.contains("cannot run as user 1000") && error.contains("without root"),
        "{error}"
    );
}
