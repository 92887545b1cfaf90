//! What a request asks for: path and query, parsed once.

use http::{Method, StatusCode, Uri};
use jiff::Timestamp;

use super::Refusal;

/// A request that this server knows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Health,
    Log(Target, LogOptions),
    Exec(Target, ExecOptions),
    Attach(Target, StreamOptions),
}

/// Which container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) container: String,
}

/// What of a log is wanted: Kubernetes' PodLogOptions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LogOptions {
    pub(super) follow: bool,
    pub(super) previous: bool,
    pub(super) timestamps: bool,
    pub(super) tail_lines: Option<u64>,
    pub(super) limit_bytes: Option<u64>,
    pub(super) since: Option<Timestamp>,
}

/// What is to be run, and with which streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExecOptions {
    pub(super) command: Vec<String>,
    pub(super) streams: StreamOptions,
}

/// The streams the client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StreamOptions {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

/// Parses a request; `now` is what `sinceSeconds` counts from.
pub(super) fn parse(method: &Method, uri: &Uri, now: Timestamp) -> Result<Asked, Refusal> {
    let segments: Vec<String> = uri
        .path()
        .split('/')
        .skip(1)
        .map(|part| decode(part, false))
        .collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let query = Query::parse(uri.query().unwrap_or_default());
    let asked = match segments[..] {
        ["healthz"] => Asked::Health,
        ["containerLogs", namespace, pod, container] => {
            Asked::Log(target(namespace, pod, container)?, log_options(&query, now)?)
        }
        ["exec", namespace, pod, container] => {
            Asked::Exec(target(namespace, pod, container)?, exec_options(&query)?)
        }
        ["attach", namespace, pod, container] => {
            Asked::Attach(target(namespace, pod, container)?, stream_options(&query)?)
        }
        _ => return Err(Refusal::new(StatusCode::NOT_FOUND, "404 page not found")),
    };
    let allowed = match asked {
        Asked::Exec(..) | Asked::Attach(..) => method == Method::GET || method == Method::POST,
        _ => method == Method::GET,
    };
    if allowed {
        Ok(asked)
    } else {
        Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "405: Method Not Allowed",
        ))
    }
}

/// A container that is not named is the pod's default one: what `podnet lab exec` asks for. (A kubelet refuses it;
/// API servers always name one.)
fn target(namespace: &str, pod: &str, container: &str) -> Result<Target, Refusal> {
    for (name, what) in [(namespace, "podNamespace"), (pod, "podID")] {
        if name.is_empty() {
            return Err(bad(format!("Missing {what}.")));
        }
    }
    Ok(Target {
        namespace: namespace.into(),
        pod: pod.into(),
        container: container.into(),
    })
}

fn log_options(query: &Query, now: Timestamp) -> Result<LogOptions, Refusal> {
    let since_seconds = query.number("sinceSeconds", 1)?;
    let since_time = query.time("sinceTime")?;
    if since_seconds.is_some() && since_time.is_some() {
        return Err(invalid(
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    let ago = |seconds: u64| {
        let span = jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
        now.checked_sub(span).unwrap_or(Timestamp::MIN)
    };
    Ok(LogOptions {
        follow: query.flag("follow")?,
        previous: query.flag("previous")?,
        timestamps: query.flag("timestamps")?,
        tail_lines: query.number("tailLines", 0)?,
        limit_bytes: query.number("limitBytes", 1)?,
        since: since_time.or(since_seconds.map(ago)),
    })
}

fn exec_options(query: &Query) -> Result<ExecOptions, Refusal> {
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    if command.iter().all(String::is_empty) {
        return Err(bad("you must specify a command"));
    }
    Ok(ExecOptions {
        command,
        streams: stream_options(query)?,
    })
}

fn stream_options(query: &Query) -> Result<StreamOptions, Refusal> {
    let tty = query.flag("tty")?;
    let streams = StreamOptions {
        stdin: query.flag("input")?,
        stdout: query.flag("output")?,
        // A terminal has one output only.
        stderr: query.flag("error")? && !tty,
        tty,
    };
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(bad("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(streams)
}

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, message)
}

fn invalid(message: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        format!("Invalid request: {message}"),
    )
}

struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: &str) -> Self {
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name, true), decode(value, true))
        };
        Query(
            query
                .split('&')
                .filter(|part| !part.is_empty())
                .map(pair)
                .collect(),
        )
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|v| !v.is_empty())
    }

    /// As Go's ParseBool, whose words clients use freely.
    fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.first(name) {
            None | Some("0" | "f" | "F" | "false" | "False" | "FALSE") => Ok(false),
            Some("1" | "t" | "T" | "true" | "True" | "TRUE") => Ok(true),
            Some(other) => Err(bad(format!(
                "Unable to decode query: {name}={other:?} is no boolean"
            ))),
        }
    }

    fn number(&self, name: &str, least: i64) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.first(name) else {
            return Ok(None);
        };
        let number: i64 = text
            .parse()
            .map_err(|_| bad(format!("Unable to decode query: {name}={text:?} is no number")))?;
        let number = u64::try_from(number).ok().filter(|_| number >= least);
        number
            .map(Some)
            .ok_or_else(|| invalid(format!("{name} must be greater than or equal to {least}")))
    }

    fn time(&self, name: &str) -> Result<Option<Timestamp>, Refusal> {
        let Some(text) = self.first(name) else {
            return Ok(None);
        };
        let time = text
            .parse()
            .map_err(|_| bad(format!("Unable to decode query: {name}={text:?} is no time")))?;
        Ok(Some(time))
    }
}

/// Percent decoding; in a query (`form`) a plus is a space.
fn decode(text: &str, form: bool) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|pair| {
            let digit = |byte: u8| (byte as char).to_digit(16);
            u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
        });
        match (byte, hex) {
            (b'%', Some(value)) => {
                plain.push(value);
                at += 3;
                continue;
            }
            (b'+', _) if form => plain.push(b' '),
            _ => plain.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(uri: &str) -> Result<Asked, Refusal> {
        parse(
            &Method::GET,
            &uri.parse().unwrap(),
            "2026-01-01T00:01:00Z".parse().unwrap(),
        )
    }

    fn refused(uri: &str) -> (u16, String) {
        let refusal = get(uri).unwrap_err();
        (refusal.status.as_u16(), refusal.message)
    }

    #[test]
    fn a_command_keeps_its_words() {
        let asked =
            get("/exec/ns/pod/c?command=sh&command=-c&command=echo+a%2Bb%20%22&input=1&output=true").unwrap();
        let Asked::Exec(target, exec) = asked else {
            panic!("{asked:?}")
        };
        assert_eq!(
            (
                target.namespace.as_str(),
                target.pod.as_str(),
                target.container.as_str()
            ),
            ("ns", "pod", "c")
        );
        assert_eq!(exec.command, ["sh", "-c", "echo a+b \""]);
        assert_eq!(
            exec.streams,
            StreamOptions {
                stdin: true,
                stdout: true,
                stderr: false,
                tty: false
            }
        );
    }

    #[test]
    fn a_terminal_has_no_standard_error() {
        let Ok(Asked::Attach(_, streams)) = get("/attach/ns/pod/c?output=1&error=1&tty=1") else {
            panic!()
        };
        assert_eq!(
            streams,
            StreamOptions {
                stdin: false,
                stdout: true,
                stderr: false,
                tty: true
            }
        );
    }

    #[test]
    fn log_options_are_read() {
        let uri =
            "/containerLogs/ns/pod/c?follow=true&tailLines=0&sinceSeconds=60&limitBytes=7&timestamps=true";
        let Ok(Asked::Log(_, options)) = get(uri) else {
            panic!()
        };
        let expected = LogOptions {
            follow: true,
            timestamps: true,
            tail_lines: Some(0),
            limit_bytes: Some(7),
            since: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            previous: false,
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        assert_eq!(refused("/exec/ns/pod/c?command=ls").0, 400);
        assert_eq!(
            refused("/exec/ns/pod/c?output=1"),
            (400, "you must specify a command".into())
        );
        assert_eq!(refused("/containerLogs/ns/pod").0, 404);
        assert_eq!(
            refused("/containerLogs/ns/pod/c?tailLines=-1"),
            (
                422,
                "Invalid request: tailLines must be greater than or equal to 0".into()
            )
        );
        assert!(
            refused("/containerLogs/ns/pod/c?follow=perhaps")
                .1
                .contains("follow")
        );
        assert!(
            refused("/containerLogs/ns/pod/c?sinceTime=now")
                .1
                .contains("sinceTime")
        );
        let post = parse(
            &Method::POST,
            &"/containerLogs/a/b/c".parse().unwrap(),
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(post.unwrap_err().status, StatusCode::METHOD_NOT_ALLOWED);
    }

    proptest::proptest! {
        #[test]
        fn percent_encoding_is_undone(text in "\\PC{0,40}") {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            proptest::prop_assert_eq!(decode(&encoded, true), text);
        }
    }
}
