//! What the machine says about itself.

use std::fs;

/// The machine that all nodes of the lab are on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// Pretty name of the operating system.
    pub os: String,
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The boot's ID.
    pub boot_id: String,
    /// CPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
}

impl Machine {
    /// Reads it from /proc and /etc; what cannot be read stays empty.
    pub fn read() -> Machine {
        let text = |path: &str| {
            fs::read_to_string(path)
                .map(|it| it.trim().to_owned())
                .unwrap_or_default()
        };
        let uname = rustix::system::uname();
        Machine {
            kernel: uname.release().to_string_lossy().into_owned(),
            os: pretty_name(&text("/etc/os-release")),
            architecture: architecture(&uname.machine().to_string_lossy()),
            machine_id: text("/etc/machine-id"),
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            cpus: std::thread::available_parallelism().map_or(1, |it| u32::try_from(it.get()).unwrap_or(1)),
            memory: total_memory(&text("/proc/meminfo")),
        }
    }
}

fn pretty_name(os_release: &str) -> String {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// The machine's architecture in Go's words, which Kubernetes uses.
fn architecture(machine: &str) -> String {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i686" | "i386" => "386",
        other => other,
    }
    .to_owned()
}

fn total_memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .and_then(|it| it.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_they_are_written() {
        assert_eq!(
            pretty_name("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
            "Debian GNU/Linux 12"
        );
        assert_eq!(total_memory("MemTotal:       1024 kB\nMemFree: 1 kB"), 1 << 20);
        assert_eq!(architecture("x86_64"), "amd64");
        let machine = Machine::read();
        assert!(machine.cpus > 0 && machine.memory > 0 && !machine.kernel.is_empty());
    }
}
