use super::*;
use std::convert::Infallible;
use std::fs;

const BOOT: &str = "11111111-1111-1111-1111-111111111111";

fn attachment(n: usize) -> Attachment {
    Attachment::new(&format!("container{n}"), "eth0").unwrap()
}

fn open(dir: &Path, in_kernel: &LinksInKernel) -> Leases {
    let leases = Leases::open(dir, BOOT, in_kernel).unwrap();
    set(&leases, &["10.0.0.0/28", "fd00::/124"]);
    leases
}

fn set(leases: &Leases, ranges: &[&str]) {
    let ranges: Vec<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
    leases.set(&Addressing::of_node(&ranges).into());
}

fn ask(leases: &Leases, n: usize) -> Result<Lease, LeaseError> {
    leases.lease(&Ask::any(&attachment(n), "podnet", &PodReference::default()))
}

fn lease(leases: &Leases, n: usize) -> Lease {
    let lease = ask(leases, n).unwrap();
    leases.wired(&lease);
    lease
}

fn kernel(leases: &[&Lease]) -> LinksInKernel {
    leases
        .iter()
        .map(|lease| (lease.attachment.host_link(), lease.addresses.clone()))
        .collect()
}

fn count(dir: &Path, sub: &str) -> usize {
    fs::read_dir(dir.join(sub)).unwrap().count()
}

#[test]
fn a_restart_finds_the_leases_whose_links_exist_and_frees_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let leases = open(dir.path(), &LinksInKernel::new());
    let (kept, lost) = (lease(&leases, 1), lease(&leases, 2));
    drop(leases);
    let leases = open(dir.path(), &kernel(&[&kept]));
    assert_eq!(leases.all(), std::slice::from_ref(&kept));
    assert_eq!(count(dir.path(), LEASES_DIR), 1);
    // Next-fit goes on behind the newest lease that is left; what was lost is not lost for ever.
    let again: Vec<_> = (10..22).map(|n| lease(&leases, n).addresses[0]).collect();
    assert_eq!(again[11], lost.addresses[0], "it rests, over the restart too");
    assert!(!again.contains(&kept.addresses[0]));
    let full = ask(&leases, 99).unwrap_err();
    assert!(full.to_string().contains("10.0.0.0/28"), "{full}");
}

const LEASES_DIR: &str = podnet_cni::LEASES;

#[test]
fn an_address_is_free_only_when_the_link_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let leases = open(dir.path(), &LinksInKernel::new());
    set(&leases, &["10.0.0.1/32"]);
    let one = lease(&leases, 1);
    let ended = leases.release(&one.attachment).unwrap().unwrap();
    assert_eq!(ended, one);
    assert_eq!(
        (
            count(dir.path(), LEASES_DIR),
            count(dir.path(), podnet_cni::RELEASED)
        ),
        (0, 1)
    );
    assert!(ask(&leases, 2).is_err());
    assert!(
        leases.release(&one.attachment).unwrap().is_none(),
        "a second DEL has nothing to do"
    );
    leases.forget(&ended);
    assert_eq!(count(dir.path(), podnet_cni::RELEASED), 0);
    assert_eq!(lease(&leases, 2).addresses, one.addresses);
}

#[test]
fn a_restart_finishes_what_was_released() {
    let dir = tempfile::tempdir().unwrap();
    let leases = open(dir.path(), &LinksInKernel::new());
    let (one, two) = (lease(&leases, 1), lease(&leases, 2));
    leases.release(&one.attachment).unwrap();
    leases.release(&two.attachment).unwrap();
    drop(leases);
    let leases = open(dir.path(), &kernel(&[&one]));
    assert_eq!(
        leases.ended(),
        std::slice::from_ref(&one),
        "the link of the other is gone"
    );
    leases.forget(&one);
    assert_eq!(count(dir.path(), podnet_cni::RELEASED), 0);
}

#[test]
fn a_delete_without_the_agent_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let leases = open(dir.path(), &LinksInKernel::new());
    let (one, two) = (lease(&leases, 1), lease(&leases, 2));
    podnet_cni::note_release(dir.path(), &one.attachment).unwrap();
    // The links are still there.
    let in_kernel = kernel(&[&one, &two]);
    let ended = leases.collect(|| Ok::<_, Infallible>(in_kernel)).unwrap();
    assert_eq!(ended, std::slice::from_ref(&one));
    leases.forget(&one);
    assert_eq!(leases.all(), [two]);
    assert_eq!(count(dir.path(), podnet_cni::RELEASED), 0);
}

#[test]
fn a_container_that_vanished_is_noticed_but_not_one_that_is_being_wired() {
    let dir = tempfile::tempdir().unwrap();
    let leases = open(dir.path(), &LinksInKernel::new());
    let gone = lease(&leases, 1);
    let wiring = ask(&leases, 2).unwrap();
    let ended = leases
        .collect(|| Ok::<_, Infallible>(LinksInKernel::new()))
        .unwrap();
    assert_eq!(ended, std::slice::from_ref(&gone));
    leases.forget(&gone);
    assert_eq!(leases.all(), [wiring]);
}

#[test]
fn torn_files_are_repaired_or_removed() {
    let dir = tempfile::tempdir().unwrap();
    let leases = open(dir.path(), &LinksInKernel::new());
    let (torn, empty, whole) = (lease(&leases, 1), lease(&leases, 2), lease(&leases, 3));
    drop(leases);
    let path = |lease: &Lease| dir.path().join(LEASES_DIR).join(lease.attachment.file_name());
    let bytes = fs::read(path(&torn)).unwrap();
    fs::write(path(&torn), &bytes[..bytes.len() / 2]).unwrap();
    fs::write(path(&empty), b"").unwrap();
    fs::write(dir.path().join(LEASES_DIR).join(".new-7"), b"half").unwrap();
    fs::write(dir.path().join(LEASES_DIR).join("README"), b"not ours").unwrap();
    let leases = open(dir.path(), &kernel(&[&torn, &whole]));
    let addresses: Vec<_> = leases.all().into_iter().map(|lease| lease.addresses).collect();
    assert_eq!(addresses, [torn.addresses.clone(), whole.addresses.clone()]);
    assert_eq!(count(dir.path(), LEASES_DIR), 3, "two leases and a foreign file");
    drop(leases);
    let leases = open(dir.path(), &kernel(&[&torn, &whole]));
    assert_eq!(leases.all().len(), 2, "the repair was written down");
}

#[test]
fn an_earlier_boot_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let leases = open(dir.path(), &LinksInKernel::new());
    for n in 0..12 {
        lease(&leases, n);
    }
    leases.release(&attachment(3)).unwrap();
    drop(leases);
    let leases = Leases::open(
        dir.path(),
        "22222222-2222-2222-2222-222222222222",
        &LinksInKernel::new(),
    )
    .unwrap();
    assert!(leases.all().is_empty() && leases.ended().is_empty());
    assert_eq!(
        count(dir.path(), LEASES_DIR) + count(dir.path(), podnet_cni::RELEASED),
        0
    );
}

#[test]
fn a_link_without_a_lease_keeps_its_addresses_until_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let stranger: IpAddr = "10.0.0.1".parse().unwrap();
    let in_kernel = LinksInKernel::from([("podnetaaaaaaaaa".to_owned(), vec![stranger])]);
    let leases = Leases::open(dir.path(), BOOT, &in_kernel).unwrap();
    set(&leases, &["10.0.0.1/32"]);
    assert!(leases.check().is_err());
    leases
        .collect(|| Ok::<_, Infallible>(LinksInKernel::new()))
        .unwrap();
    assert_eq!(lease(&leases, 1).addresses, [stranger]);
}

#[test]
fn an_attachment_is_added_once() {
    let dir = tempfile::tempdir().unwrap();
    let leases = open(dir.path(), &LinksInKernel::new());
    lease(&leases, 1);
    let error = ask(&leases, 1).unwrap_err();
    assert!(matches!(error, LeaseError::Held(_)));
}

#[test]
fn only_one_agent_keeps_the_leases() {
    let dir = tempfile::tempdir().unwrap();
    let _leases = open(dir.path(), &LinksInKernel::new());
    let error = Leases::open(dir.path(), BOOT, &LinksInKernel::new())
        .err()
        .unwrap();
    assert!(matches!(error, LeaseError::Locked(_)), "{error}");
}

#[test]
fn a_state_directory_that_cannot_be_one_is_named() {
    for part in ["leases", "released", "resting", "leases.lock"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(part);
        match part {
            "leases.lock" => fs::create_dir(&path).unwrap(),
            _ => fs::write(&path, "no directory").unwrap(),
        }
        let error = Leases::open(dir.path(), BOOT, &LinksInKernel::new())
            .err()
            .unwrap();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn exhaustion_names_the_pool_and_who_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let leases = open(dir.path(), &LinksInKernel::new());
    set(&leases, &["10.0.0.0/31"]);
    let pod = PodReference {
        namespace: "greedy".into(),
        ..PodReference::default()
    };
    for n in 0..2 {
        leases.lease(&Ask::any(&attachment(n), "podnet", &pod)).unwrap();
    }
    let error = leases
        .lease(&Ask::any(&attachment(2), "podnet", &pod))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "no address is left in the node's range 10.0.0.0/31: all 2 are in use; most (2) by pods of namespace greedy"
    );
}
