//! What the bytes of a migration go over: loopback, or a pair of virtual Ethernet devices between two network namespaces of its own, with a
//! limited speed in both directions.

use crate::BenchError;
use nacre_vmm::migration::Streams;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Serialize, Serializer};
use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;

/// How fast a network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speed {
    /// As fast as this machine is.
    Loopback,
    /// So many Gbit/s.
    Gigabits(u32),
}

impl Speed {
    /// Its limit.
    #[must_use]
    pub fn bytes_per_second(self) -> Option<f64> {
        match self {
            Speed::Loopback => None,
            Speed::Gigabits(gigabits) => Some(f64::from(gigabits) * 1e9 / 8.0),
        }
    }
}

impl Display for Speed {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Speed::Loopback => formatter.write_str("loopback"),
            Speed::Gigabits(gigabits) => write!(formatter, "{gigabits} Gbit/s"),
        }
    }
}

impl Serialize for Speed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Names of the namespaces, and the addresses in them.
const ENDS: [(&str, Ipv4Addr); 2] =
    [("a", Ipv4Addr::new(10, 201, 77, 1)), ("b", Ipv4Addr::new(10, 201, 77, 2))];

/// A network of this run; gone when it is dropped.
pub(super) struct Network {
    pub(super) speed: Speed,
    /// Namespaces that were made.
    namespaces: Vec<String>,
}

impl Network {
    /// Makes one.
    ///
    /// # Errors
    /// If there are no namespaces, devices or limits to be had: that needs root, and the commands `ip` and `tc`.
    pub(super) fn new(speed: Speed) -> Result<Self, BenchError> {
        let mut network = Self { speed, namespaces: Vec::new() };
        if let Speed::Gigabits(gigabits) = speed {
            network.connect(gigabits)?;
        }
        Ok(network)
    }

    fn connect(&mut self, gigabits: u32) -> Result<(), BenchError> {
        let of_run = |end: &str| format!("nacre-bench-{}-{end}", std::process::id());
        for (end, _) in ENDS {
            run(&format!("ip netns add {}", of_run(end)))?;
            self.namespaces.push(of_run(end));
        }
        let [a, b] = [of_run("a"), of_run("b")];
        run(&format!("ip link add veth-a netns {a} type veth peer name veth-b netns {b}"))?;
        for (end, address) in ENDS {
            let (namespace, device) = (of_run(end), format!("veth-{end}"));
            run(&format!("ip -n {namespace} address add {address}/30 dev {device}"))?;
            run(&format!("ip -n {namespace} link set {device} up"))?;
            // Who talks to its own end does it over this one.
            run(&format!("ip -n {namespace} link set lo up"))?;
            // What a millisecond carries, and at least a few of the largest segments.
            let burst = (gigabits * 125_000).max(262_144);
            run(&format!(
                "tc -n {namespace} qdisc add dev {device} root tbf rate {gigabits}gbit burst {burst} latency 20ms"
            ))?;
        }
        Ok(())
    }

    /// The address of one end.
    pub(super) fn address(&self, end: usize) -> Ipv4Addr {
        match self.namespaces.get(end) {
            Some(_) => ENDS[end].1,
            None => Ipv4Addr::new(127, 0, 0, if end == 0 { 1 } else { 2 }),
        }
    }

    /// The connections of one migration.
    pub(super) fn streams(&self, lanes: usize) -> Result<(Streams, Streams), BenchError> {
        let mut pairs = (0..lanes + 2).map(|_| self.pair()).collect::<Result<Vec<_>, _>>()?.into_iter();
        let (Some(control), Some(demand)) = (pairs.next(), pairs.next()) else {
            unreachable!("two more than there are lanes")
        };
        let (here, there) = pairs.unzip();
        Ok((
            Streams { control: control.0, demand: demand.0, lanes: here },
            Streams { control: control.1, demand: demand.1, lanes: there },
        ))
    }

    fn pair(&self) -> Result<(TcpStream, TcpStream), BenchError> {
        let system = BenchError::system("a connection");
        let address = match self.namespaces.get(1) {
            Some(_) => IpAddr::V4(ENDS[1].1),
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let connected = || {
            let listener = self.within(1, move || TcpListener::bind((address, 0)))?;
            let to: SocketAddr = listener.local_addr()?;
            let here = self.within(0, move || TcpStream::connect(to))?;
            let there = listener.accept()?.0;
            here.set_nodelay(true)?;
            there.set_nodelay(true)?;
            Ok((here, there))
        };
        connected().map_err(system)
    }

    /// Does something in the namespace of one end, if there is one: on a thread that ends with it.
    pub(super) fn within<T: Send + 'static>(
        &self,
        end: usize,
        action: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        let Some(namespace) = self.namespaces.get(end) else { return action() };
        let file = File::open(format!("/run/netns/{namespace}"))?;
        let inside = move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            action()
        };
        std::thread::spawn(inside).join().map_err(|_| std::io::Error::other("the thread panicked"))?
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // Its devices go with it. If that fails it stays, and is in nobody's way: its name has this process's number.
            let _ = run(&format!("ip netns delete {namespace}"));
        }
    }
}

fn run(command: &str) -> Result<(), BenchError> {
    let mut words = command.split_ascii_whitespace();
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).output();
    let output =
        output.map_err(|error| BenchError::Child { command: command.into(), what: error.to_string() })?;
    if !output.status.success() {
        let what = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(BenchError::Child { command: command.into(), what });
    }
    Ok(())
}
