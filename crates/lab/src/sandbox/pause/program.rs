//! What exactly a container or an exec executes: command line, environment, user, file.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::Access;

use crate::sandbox::spec::ContainerSpec;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Environment by name; a later setting of a name replaces an earlier one.
pub(super) type Environment = BTreeMap<String, String>;

/// The command line, as Kubernetes combines the image's and the pod's.
pub(super) fn command_line(spec: &ContainerSpec) -> Result<Vec<String>, String> {
    let image = &spec.image.config;
    let (program, arguments) = match (spec.command.is_empty(), spec.args.is_empty()) {
        (false, _) => (&spec.command, &spec.args),
        (true, false) => (&image.entrypoint, &spec.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let line: Vec<String> = program.iter().chain(arguments).cloned().collect();
    match line.first() {
        Some(program) if !program.is_empty() => Ok(line),
        Some(_) => Err("exec: \"\": executable file not found in $PATH".into()),
        None => Err(format!(
            "no command specified: the image {} has none of its own, so the container needs `command` or `args`",
            spec.image.reference
        )),
    }
}

/// The environment of a container's first process; HOME comes from the user.
pub(super) fn environment(spec: &ContainerSpec, hostname: &str) -> Environment {
    let mut env = Environment::new();
    env.insert("PATH".into(), PATH.into());
    env.insert("HOSTNAME".into(), hostname.into());
    if spec.tty {
        env.insert("TERM".into(), "xterm".into());
    }
    env.extend(spec.image.config.env.iter().chain(&spec.env).cloned());
    env
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// The user of a container, looked up in `etc` (the container's /etc).
pub(super) fn user(spec: &ContainerSpec, etc: &Path) -> Result<User, String> {
    let passwd = fs::read_to_string(etc.join("passwd")).unwrap_or_default();
    let group = fs::read_to_string(etc.join("group")).unwrap_or_default();
    let of_image = spec.image.config.user.as_deref().unwrap_or("0");
    let (name, group_name) = match of_image.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (of_image, None),
    };
    let entry = match spec.run_as_user {
        Some(uid) => Account::by_uid(&passwd, uid).unwrap_or(Account::unknown(uid)),
        None => Account::find(&passwd, name)
            .ok_or_else(|| format!("unable to find user {name}: no matching entries in passwd file"))?,
    };
    let gid = match (
        spec.run_as_group,
        group_name.filter(|_| spec.run_as_user.is_none()),
    ) {
        (Some(gid), _) => gid,
        (None, Some(name)) => group_id(&group, name)
            .ok_or_else(|| format!("unable to find group {name}: no matching entries in group file"))?,
        (None, None) => entry.gid,
    };
    let mut groups = further_groups(&group, &entry.name);
    groups.retain(|&further| further != gid);
    groups.insert(0, gid);
    Ok(User {
        uid: entry.uid,
        gid,
        groups,
        home: entry.home,
    })
}

/// A line of passwd(5).
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

impl Account {
    fn parse(line: &str) -> Option<Account> {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?.to_owned();
        Some(Account { name, uid, gid, home })
    }

    fn by_uid(passwd: &str, uid: u32) -> Option<Account> {
        passwd
            .lines()
            .filter_map(Account::parse)
            .find(|account| account.uid == uid)
    }

    /// By name or number; a number need not be in the file.
    fn find(passwd: &str, name: &str) -> Option<Account> {
        if let Some(account) = passwd
            .lines()
            .filter_map(Account::parse)
            .find(|account| account.name == name)
        {
            return Some(account);
        }
        let uid = name.parse().ok()?;
        Some(Account::by_uid(passwd, uid).unwrap_or(Account::unknown(uid)))
    }

    fn unknown(uid: u32) -> Account {
        let home = if uid == 0 { "/root" } else { "/" };
        Account {
            name: String::new(),
            uid,
            gid: 0,
            home: home.into(),
        }
    }
}

fn group_id(group: &str, name: &str) -> Option<u32> {
    let named = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name))
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    });
    named.or_else(|| name.parse().ok())
}

fn further_groups(group: &str, user: &str) -> Vec<u32> {
    let member = |line: &str| {
        let mut fields = line.split(':');
        let gid = fields.nth(2)?.parse().ok()?;
        fields
            .next()?
            .split(',')
            .any(|name| name == user && !name.is_empty())
            .then_some(gid)
    };
    group.lines().filter_map(member).collect()
}

/// Finds the program as a shell would, from inside the container and as its user. Errors are runc's.
pub(super) fn find(program: &str, path: &str) -> Result<String, String> {
    if program.contains('/') {
        let metadata = fs::metadata(program)
            .map_err(|error| format!("exec: {program:?}: stat {program}: {}", told(&error)))?;
        return match metadata.is_dir() {
            true => Err(format!("exec: {program:?}: is a directory")),
            false if executable(program) => Ok(program.to_owned()),
            false => Err(format!("exec: {program:?}: permission denied")),
        };
    }
    let candidates = path.split(':').map(|dir| match dir {
        "" => format!("./{program}"),
        dir => format!("{dir}/{program}"),
    });
    candidates
        .into_iter()
        .find(|candidate| executable(candidate))
        .ok_or_else(|| format!("exec: {program:?}: executable file not found in $PATH"))
}

/// As the calling user; root may execute only what anybody may.
fn executable(path: &str) -> bool {
    let file = fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    file && rustix::fs::access(path, Access::EXEC_OK).is_ok()
}

/// The kernel's words without Rust's addition.
pub(super) fn told(error: &std::io::Error) -> String {
    let text = error.to_string();
    let plain = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = plain.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn spec(command: &[&str], args: &[&str]) -> ContainerSpec {
        let mut spec = ContainerSpec {
            command: words(command),
            args: words(args),
            ..ContainerSpec::default()
        };
        spec.image.config.entrypoint = words(&["/entry"]);
        spec.image.config.cmd = words(&["cmd"]);
        spec
    }

    // The table of https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/
    #[test]
    fn the_command_line_is_combined_as_kubernetes_does() {
        assert_eq!(command_line(&spec(&[], &[])).unwrap(), ["/entry", "cmd"]);
        assert_eq!(command_line(&spec(&["/mine"], &[])).unwrap(), ["/mine"]);
        assert_eq!(command_line(&spec(&[], &["x"])).unwrap(), ["/entry", "x"]);
        assert_eq!(command_line(&spec(&["/mine"], &["x"])).unwrap(), ["/mine", "x"]);
        assert!(
            command_line(&ContainerSpec::default())
                .unwrap_err()
                .contains("no command specified")
        );
    }

    #[test]
    fn the_pods_environment_is_stronger_than_the_images() {
        let mut spec = spec(&[], &[]);
        spec.image.config.env = vec![("PATH".into(), "/image".into()), ("A".into(), "image".into())];
        spec.env = vec![("A".into(), "pod".into()), ("A".into(), "later".into())];
        let env = environment(&spec, "web-0");
        assert_eq!(
            (env["PATH"].as_str(), env["A"].as_str(), env["HOSTNAME"].as_str()),
            ("/image", "later", "web-0")
        );
    }

    #[test]
    fn users_are_looked_up_in_the_container() {
        let etc = tempfile::tempdir().unwrap();
        fs::write(
            etc.path().join("passwd"),
            "root:x:0:0::/root:/bin/sh\nwww:x:33:34::/var/www:/bin/sh\n",
        )
        .unwrap();
        fs::write(etc.path().join("group"), "staff:x:50:www,other\nnone:x:51:\n").unwrap();
        let mut spec = ContainerSpec::default();
        assert_eq!(
            user(&spec, etc.path()).unwrap(),
            User {
                uid: 0,
                gid: 0,
                groups: vec![0],
                home: "/root".into()
            }
        );
        spec.image.config.user = Some("www".into());
        let www = User {
            uid: 33,
            gid: 34,
            groups: vec![34, 50],
            home: "/var/www".into(),
        };
        assert_eq!(user(&spec, etc.path()).unwrap(), www);
        spec.image.config.user = Some("1000:staff".into());
        let other = User {
            uid: 1000,
            gid: 50,
            groups: vec![50],
            home: "/".into(),
        };
        assert_eq!(user(&spec, etc.path()).unwrap(), other);
        spec.run_as_user = Some(33);
        assert_eq!(user(&spec, etc.path()).unwrap(), www);
        spec.run_as_user = None;
        spec.image.config.user = Some("nobody-here".into());
        assert!(
            user(&spec, etc.path())
                .unwrap_err()
                .contains("unable to find user nobody-here")
        );
    }

    #[test]
    fn a_program_that_cannot_be_found_is_told_in_runcs_words() {
        assert_eq!(find("sh", "/nowhere:/usr/bin:/bin").unwrap(), "/usr/bin/sh");
        let errors =
            ["no-such-program", "/no/such", "/etc", "/etc/passwd"].map(|p| find(p, "/bin").unwrap_err());
        assert_eq!(
            errors,
            [
                "exec: \"no-such-program\": executable file not found in $PATH",
                "exec: \"/no/such\": stat /no/such: no such file or directory",
                "exec: \"/etc\": is a directory",
                "exec: \"/etc/passwd\": permission denied",
            ]
        );
    }
}
