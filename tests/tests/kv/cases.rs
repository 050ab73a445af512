//! What must hold of the store wherever it runs: the same requests to it and to `redis-server` must have the same replies,
//! byte for byte, whatever the requests are; and what only a store of ours promises: scans while the table changes, memory
//! that runs out, clients that are slow or mean. Each case begins with an empty store of its own or empties it.

use crate::random::{Requests, agree, without_id};
use anyhow::Result;
use nacre_tests::kv::{Client, LIMIT, Server, bulks, request};
use nacre_tests::skip::{Unavailable, need};
use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Options of the store that [`full_store`] fills.
pub const ARENA: [&str; 2] = ["--arena", "24mb"];
/// Options of the store that [`connections`] is about.
pub const MAX_CLIENTS: [&str; 2] = ["--maxclients", "400"];

/// Random requests have the replies of redis.
pub fn random_requests(kv: &Server, redis: &Server, rounds: u64) {
    for seed in 1..=rounds {
        let mut random = Requests::of_seed(seed);
        let (mut ours, mut theirs) = (kv.connect().unwrap(), redis.connect().unwrap());
        assert_eq!(ours.ask("FLUSHALL").unwrap(), theirs.ask("FLUSHALL").unwrap());
        if seed % 3 == 0 {
            ours.ask("HELLO 3").unwrap();
            theirs.ask("HELLO 3").unwrap();
        }
        for _ in 0..50 {
            let requests: Vec<_> = (0..1 + random.below(20)).map(|_| random.request()).collect();
            let bytes: Vec<u8> = requests.iter().flat_map(|r| request(r)).collect();
            theirs.send(&bytes).unwrap();
            // Ours comes in pieces, so that every place is once the end of what has come.
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let most = if random.below(3) == 0 { 10 } else { 100_000 };
                let n = usize::try_from(1 + random.below(most)).unwrap().min(rest.len());
                ours.send(&rest[..n]).unwrap();
                rest = &rest[n..];
            }
            for request in &requests {
                let (ours, theirs) = (ours.reply().unwrap(), theirs.reply().unwrap());
                let shown: Vec<_> =
                    request.iter().map(|a| String::from_utf8_lossy(&a[..a.len().min(80)])).collect();
                let lossy =
                    |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
                assert!(
                    agree(request, &ours, &theirs),
                    "seed {seed}, {shown:?}: {:?} is not {:?}",
                    lossy(&ours),
                    lossy(&theirs)
                );
            }
        }
    }
}

/// What is sent on one connection, then its end.
fn conversation(server: &Server, bytes: &[u8]) -> String {
    let mut client = server.connect().unwrap();
    // A server that has closed already refuses the rest.
    let _ = client.send(bytes);
    let _ = client.end();
    String::from_utf8_lossy(&without_id(&client.rest())).into_owned()
}

/// Protocol errors and inline requests have the replies of redis.
pub fn protocol(kv: &Server, redis: &Server) {
    let long_line = [b"*".as_slice(), &[b'1'; 70_000]].concat();
    let long_bulk = [b"*1\r\n$".as_slice(), &[b'1'; 70_000]].concat();
    let long_inline = vec![b'a'; 70_000];
    let cases: Vec<&[u8]> = vec![
        b"PING\r\n",
        b"PING\n",
        b"ping hello\r\n",
        b"\r\n\r\nPING\r\n",
        b"   PING   \r\nECHO \"a b\\x41\\n\\\"\"\r\n",
        b"ECHO 'it\\'s \\n'\r\n",
        b"ECHO \"\"\r\n",
        b"ECHO \"open\r\nPING\r\n",
        b"ECHO \"a\"b\r\n",
        b"ECHO a\"b c\"\r\n",
        b"ECHO \"\\xzz\\q\"\r\n",
        b"*0\r\nPING\r\n",
        b"*-1\r\nPING\r\n",
        b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nping\r\n",
        b"*x\r\nPING\r\n",
        b"*99999999999999999999\r\n",
        b"*01\r\n$4\r\nPING\r\n",
        b"*1\r\nPING\r\n",
        b"*1\r\n:4\r\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n$x\r\n",
        b"*1\r\n$536870913\r\n",
        b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n",
        b"*2\r\n$4\r\nECHO\r\n$3\r\nabcXYPING\r\n",
        b"*1\r\n$4\r\nPING\r\nPING\r\n*1\r\n$4\r\nPING\r\n",
        b"SET a b\r\nGET a\r\nDEL a\r\nGET a\r\n",
        b"GET\r\nnosuch a b\r\n\x01\x02\x03\r\n",
        b"*1\r\n$4\r\nQUIT\r\nPING\r\n",
        b"QUIT\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\na",
        b"*3\r\n",
        b"*",
        b"RESET\r\n",
        b"CLIENT SETNAME a\\ b\r\nCLIENT SETNAME ok\r\nCLIENT GETNAME\r\nRESET\r\nCLIENT GETNAME\r\n",
        b"CLIENT ID x\r\nCLIENT GETNAME x\r\nCONFIG GET\r\nMEMORY USAGE\r\nCOMMAND COUNT x\r\n",
        b"HELLO 3 SETNAME me AUTH default any\r\n \r\n",
        b"HELLO 2 AUTH who any\r\nHELLO 2 AUTH default\r\nHELLO 3 JUNK\r\n",
        b"AUTH a\r\nAUTH default x\r\nAUTH a b c\r\nAUTH who x\r\n",
        &long_line,
        &long_bulk,
        &long_inline,
    ];
    for case in cases {
        let (ours, theirs) = (conversation(kv, case), conversation(redis, case));
        assert_eq!(ours, theirs, "{:?}", String::from_utf8_lossy(&case[..case.len().min(100)]));
    }
    let too_many = conversation(kv, b"*1048577\r\n");
    assert_eq!(too_many, "-ERR Protocol error: invalid multibulk length\r\n");
}

/// Patterns match as in redis.
pub fn patterns(kv: &Server, redis: &Server) {
    let (mut ours, mut theirs) = (kv.connect().unwrap(), redis.connect().unwrap());
    let letters = b"ab-]^\\*?[c";
    let mut random = Requests::of_seed(7);
    let mut word =
        |longest| -> Vec<u8> { (0..random.below(longest)).map(|_| random.pick(letters)).collect() };
    let keys: Vec<_> = (0..60).map(|_| word(6)).collect();
    for key in &keys {
        ours.call(&[b"SET", key.as_slice(), b""]).unwrap();
        theirs.call(&[b"SET", key.as_slice(), b""]).unwrap();
    }
    for _ in 0..2000 {
        let pattern = word(8);
        let sorted = |client: &mut Client| {
            let mut keys = bulks(&client.call(&[b"KEYS", pattern.as_slice()]).unwrap());
            keys.sort();
            keys
        };
        assert_eq!(sorted(&mut ours), sorted(&mut theirs), "{:?}", String::from_utf8_lossy(&pattern));
    }
}

/// Sends requests and reads as many replies, all of which must be fine.
fn pipeline(client: &mut Client, requests: impl Iterator<Item = Vec<u8>>) {
    let mut requests = requests.peekable();
    while requests.peek().is_some() {
        let batch: Vec<_> = requests.by_ref().take(500).collect();
        client.send(&batch.concat()).unwrap();
        for _ in batch {
            let reply = client.reply().unwrap();
            assert!(!reply.starts_with(b"-"), "{}", String::from_utf8_lossy(&reply));
        }
    }
}

/// One step of a scan: the next cursor and the keys.
fn scan(client: &mut Client, cursor: &[u8], options: &[&[u8]]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut args = vec![b"SCAN".as_slice(), cursor];
    args.extend(options);
    let mut found = bulks(&client.call(&args).unwrap());
    let next = found.remove(0);
    (next, found)
}

/// Scans see every key while the table grows and shrinks.
pub fn scans(kv: &Server) {
    let mut client = kv.connect().unwrap();
    let stays: HashSet<Vec<u8>> = (0..5_000).map(|i| format!("stays:{i}").into_bytes()).collect();
    pipeline(&mut client, stays.iter().map(|key| request(&[b"SET", key.as_slice(), b"v"])));
    for change in ["grows", "shrinks"] {
        let mut seen = HashSet::new();
        let (mut cursor, mut step) = (b"0".to_vec(), 0u32);
        loop {
            let (next, keys) = scan(&mut client, &cursor, &[b"MATCH", b"st?ys:*", b"COUNT", b"50"]);
            seen.extend(keys);
            cursor = next;
            if cursor == b"0" {
                break;
            }
            if step < 100 {
                let names = (0..500).map(|i| format!("other:{}", step * 500 + i));
                pipeline(
                    &mut client,
                    names.map(|name| {
                        if change == "grows" {
                            request(&["SET", &name, "x"])
                        } else {
                            request(&["DEL", &name])
                        }
                    }),
                );
            }
            step += 1;
        }
        assert_eq!(seen, stays, "while it {change}");
        assert!(step >= 100, "the table changed while the scan ran: {step} steps");
    }
    let (mut all, mut cursor) = (0, b"0".to_vec());
    loop {
        let (next, keys) = scan(&mut client, &cursor, &[b"TYPE", b"hash"]);
        all += keys.len();
        cursor = next;
        if cursor == b"0" {
            break;
        }
    }
    assert_eq!(all, 0, "there are only strings");
    assert_eq!(client.ask("DBSIZE").unwrap(), ":5000\r\n");
}

/// Expired keys are gone at once, and their memory soon.
pub fn expiry(kv: &Server) {
    let mut client = kv.connect().unwrap();
    let before = client.info("used_memory_dataset").unwrap();
    pipeline(&mut client, (0..20_000).map(|i| request(&["SET", &format!("short:{i}"), "v", "PX", "30"])));
    pipeline(&mut client, (0..1_000).map(|i| request(&["SET", &format!("long:{i}"), "v", "EX", "1000"])));
    assert_eq!(client.ask("SET fleeting v PX 1").unwrap(), "+OK\r\n");
    let start = Instant::now();
    while client.ask("GET fleeting").unwrap() != "$-1\r\n" {
        assert!(start.elapsed() < LIMIT);
    }
    // Nobody looks at the others: they go by themselves.
    while client.ask("DBSIZE").unwrap() != ":1000\r\n" {
        assert!(start.elapsed() < LIMIT, "{}", client.ask("DBSIZE").unwrap());
    }
    assert_eq!(client.info("expired_keys").unwrap(), 20_001);
    assert!(client.ask("INFO keyspace").unwrap().contains("db0:keys=1000,expires=1000,"));
    pipeline(&mut client, (0..500).map(|i| request(&["PERSIST", &format!("long:{i}")])));
    assert!(client.ask("INFO keyspace").unwrap().contains("db0:keys=1000,expires=500,"));
    pipeline(&mut client, (0..1_000).map(|i| request(&["DEL", &format!("long:{i}")])));
    assert_eq!(client.info("used_memory_dataset").unwrap(), before, "nothing is left of them");
    // The last moment there is; redis-server 7.0 answers with a negative number.
    assert_eq!(client.ask("SET k v PXAT 9223372036854775807").unwrap(), "+OK\r\n");
    assert_eq!(client.ask("EXPIRETIME k").unwrap(), ":9223372036854776\r\n");
}

/// A full store says so and goes on. It runs with `ARENA`.
pub fn full_store(kv: &Server) {
    let mut client = kv.connect().unwrap();
    let full = "-OOM command not allowed when used memory > 'maxmemory'.\r\n";
    let value = "v".repeat(1000);
    let mut stored = 0;
    while client.call(&["SET", &format!("key:{stored}"), &value]).unwrap() == b"+OK\r\n" {
        stored += 1;
        assert!(stored < 100_000);
    }
    assert!(stored > 15_000, "{stored}");
    assert_eq!(client.call(&["SET", "one more", &value]).unwrap(), full.as_bytes());
    assert_eq!(client.call(&["MSET", "a", "1", "b", &value]).unwrap(), full.as_bytes());
    assert_eq!(client.ask("EXISTS a b").unwrap(), ":0\r\n", "all or nothing");
    assert_eq!(client.call(&["APPEND", "key:1", &value]).unwrap(), full.as_bytes());
    assert_eq!(client.call(&["SETRANGE", "key:1", "100000", "x"]).unwrap(), full.as_bytes());
    assert_eq!(client.call(&["GET", "key:1"]).unwrap(), format!("$1000\r\n{value}\r\n").as_bytes());
    // An argument that does not even fit into the buffers: dropped as it comes, and the next request is understood.
    let huge = "h".repeat(30_000_000);
    client.send(&[request(&["SET", "huge", &huge]), request(&["PING"])].concat()).unwrap();
    assert_eq!(client.reply().unwrap(), full.as_bytes());
    assert_eq!(client.reply().unwrap(), b"+PONG\r\n");
    // A reply that there is no room for.
    let mut many = vec!["MGET"];
    many.resize(3000, "key:1");
    let reply = client.call(&many).unwrap();
    assert!(
        reply.starts_with(b"-OOM the reply needs more memory"),
        "{}",
        String::from_utf8_lossy(&reply[..reply.len().min(100)])
    );
    pipeline(&mut client, (0..1000).map(|i| request(&["DEL", &format!("key:{i}")])));
    assert_eq!(client.call(&["SET", "one more", &value]).unwrap(), b"+OK\r\n");
    assert_eq!(client.ask("FLUSHALL").unwrap(), "+OK\r\n");
    assert_eq!(client.call(&["SET", "big", &"b".repeat(8_000_000)]).unwrap(), b"+OK\r\n");
    assert_eq!(client.ask("CONFIG SET maxmemory 1mb").unwrap(), "+OK\r\n");
    assert_eq!(client.ask("SET a b").unwrap(), full);
    assert_eq!(client.ask("DEL big").unwrap(), ":1\r\n");
    assert_eq!(client.ask("SET a b").unwrap(), "+OK\r\n");
}

/// Idle connections cost little, and too many are refused. It runs with `MAX_CLIENTS`. The platform may keep so many bytes for
/// each that was open.
pub fn connections(kv: &Server, kept_each: u64) {
    let mut first = kv.connect().unwrap();
    let before = first.info("used_memory_clients").unwrap();
    let mut left = Vec::new();
    for round in 1..=2 {
        let mut others: Vec<Client> = (1..400).map(|_| kv.connect().unwrap()).collect();
        for client in &mut others {
            assert_eq!(client.ask("SET k v").unwrap(), "+OK\r\n");
        }
        let each = (first.info("used_memory_clients").unwrap() - before) / 399;
        assert!(each <= 512, "{each} bytes per idle connection");
        let refused = kv.connect().unwrap().rest();
        assert_eq!(String::from_utf8_lossy(&refused), "-ERR max number of clients reached\r\n");
        assert_eq!(first.info("rejected_connections").unwrap(), round);
        drop(others);
        let start = Instant::now();
        while first.info("connected_clients").unwrap() > 1 {
            assert!(start.elapsed() < LIMIT);
        }
        left.push(first.info("used_memory_clients").unwrap());
    }
    assert!(left[0] - before <= 400 * kept_each, "{before} bytes before, {} after", left[0]);
    assert_eq!(left[0], left[1], "nothing is left of them");
}

/// Clients that do not read or never finish harm nobody.
pub fn slow_clients(kv: &Server) {
    let mut client = kv.connect().unwrap();
    let value = "v".repeat(100_000);
    assert_eq!(client.call(&["SET", "big", &value]).unwrap(), b"+OK\r\n");
    // Asks for 200 MB without reading any of it; the requests themselves fit into the socket.
    let mut lazy = kv.connect().unwrap();
    lazy.send(&request(&["GET", "big"]).repeat(2_000)).unwrap();
    let mut never: Vec<Client> = (0..50).map(|_| kv.connect().unwrap()).collect();
    for (i, client) in never.iter_mut().enumerate() {
        let part = [
            "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$500000000\r\nabc",
            "*1000000\r\n$3\r\nDEL\r\n",
            "*1",
            "PIN",
            "*2\r\n$4\r\n",
        ];
        client.send(part[i % part.len()].as_bytes()).unwrap();
    }
    pipeline(&mut client, (0..2_000).map(|i| request(&["SET", &format!("k{i}"), "v"])));
    let held = client.info("used_memory_clients").unwrap();
    assert!(held < 80 << 20, "{held} bytes are held for clients");
    let expected = format!("$100000\r\n{value}\r\n").into_bytes();
    for _ in 0..2_000 {
        assert!(lazy.reply().unwrap() == expected);
    }
    assert_eq!(lazy.ask("PING").unwrap(), "+PONG\r\n");
    // Half-closed: replies still come.
    let mut ends = kv.connect().unwrap();
    ends.send(&request(&["GET", "big"]).repeat(300)).unwrap();
    ends.end().unwrap();
    assert_eq!(ends.rest().len(), expected.len() * 300);
}

/// Large values and requests with many arguments survive.
pub fn large_values(kv: &Server) {
    let mut client = kv.connect().unwrap();
    let mut random = Requests::of_seed(11);
    for length in [16_383, 65_535, 65_536, 200_000, 1 << 20, 20 << 20] {
        let value = random.bytes(64).repeat(length / 64 + 1)[..length].to_vec();
        assert_eq!(client.call(&[b"SET".as_slice(), b"k", &value]).unwrap(), b"+OK\r\n");
        let got = bulks(&client.call(&["GET", "k"]).unwrap());
        assert!(got[0] == value, "{length} bytes");
    }
    let names: Vec<String> = (0..100_000).map(|i| format!("many:{i}")).collect();
    let mut mset = vec!["MSET"];
    names.iter().for_each(|name| mset.extend([name.as_str(), name.as_str()]));
    assert_eq!(client.call(&mset).unwrap(), b"+OK\r\n");
    let mut mget = vec!["MGET"];
    mget.extend(names.iter().map(String::as_str));
    let got = bulks(&client.call(&mget).unwrap());
    assert!(got.iter().zip(&names).all(|(got, name)| got == name.as_bytes()) && got.len() == names.len());
    let mut del = vec!["DEL"];
    del.extend(names.iter().map(String::as_str));
    assert_eq!(client.call(&del).unwrap(), b":100000\r\n");
    assert_eq!(
        client.ask("SETRANGE zeros 536870911 x").unwrap(),
        ":536870912\r\n",
        "the longest value there is"
    );
    assert_eq!(
        client.ask("APPEND zeros x").unwrap(),
        "-ERR string exceeds maximum allowed size (proto-max-bulk-len)\r\n"
    );
    assert_eq!(client.ask("FLUSHALL").unwrap(), "+OK\r\n");
    assert!(client.info("used_memory").unwrap() < 1 << 20);
}

/// The clients of redis work.
pub fn clients_of_redis(kv: &Server) {
    let port = kv.port().to_string();
    let run = |program: &str, args: &[&str], input: &str| -> Result<String> {
        let mut command = Command::new(program);
        command
            .args(["-p", &port])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| Unavailable(format!("{program} (Debian package redis-tools): {error}")))?;
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes())?;
        let output = child.wait_with_output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success() && errors.is_empty(), "{program}: {errors}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let Some(said) =
        need("kv: redis-cli", run("redis-cli", &[], "set a 1\nincr a\nget nosuch\nmget a b\nscan 0\n"))
    else {
        return;
    };
    assert_eq!(said, "OK\n2\n\n2\n\n0\na\n");
    assert!(run("redis-cli", &["-3", "--json", "HELLO", "3"], "").unwrap().contains("\"proto\":3"));
    assert!(run("redis-cli", &["COMMAND", "DOCS", "get"], "").unwrap().contains("Get the value of a key"));
    assert!(run("redis-cli", &["--bigkeys"], "").unwrap().contains("1 strings with 1 bytes"));
    assert!(
        run("redis-cli", &["--pipe"], "SET x y\r\nSET z y\r\n").unwrap().contains("errors: 0, replies: 2")
    );
    let args = ["-t", "ping,set,get,incr,mset", "-n", "5000", "-r", "1000", "-P", "16", "--csv"];
    let table = run("redis-benchmark", &args, "").unwrap();
    assert_eq!(table.lines().count(), 7, "{table}");
}
