//! Requests at random, sensible and not, and which replies count as the same.

use nacre_tests::random::Random;

/// What a seed makes of requests.
pub struct Requests(Random);

impl Requests {
    pub fn of_seed(seed: u64) -> Requests {
        Requests(Random::of_seed(seed))
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0.below(n)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        self.0.of(from)
    }

    pub fn bytes(&mut self, n: u64) -> Vec<u8> {
        (0..n).map(|_| u8::try_from(self.below(256)).unwrap()).collect()
    }

    fn key(&mut self) -> Vec<u8> {
        match self.below(20) {
            0 => vec![],
            1 => b"\r\n\0\xff".to_vec(),
            2 => vec![b'k'; 300],
            n => format!("key:{}", n % 12).into_bytes(),
        }
    }

    fn number(&mut self) -> Vec<u8> {
        let words = [
            "0",
            "1",
            "-1",
            "7",
            "10",
            "100",
            "-5",
            "9223372036854775807",
            "-9223372036854775808",
            "9223372036854775808",
            "92233720368547758",
            "-9223372036854775",
            "01",
            "+1",
            " 1",
            "1 ",
            "-0",
            "",
            "x",
            "1.5",
            "536870911",
            "536870912",
            "4294967296",
        ];
        self.pick(&words).as_bytes().to_vec()
    }

    fn value(&mut self) -> Vec<u8> {
        match self.below(10) {
            0..3 => self.number(),
            3 => vec![],
            4 => {
                let n = self.below(200_000);
                self.bytes(n)
            }
            5 => {
                let n = self.below(2_000);
                self.bytes(n)
            }
            _ => {
                let n = self.below(60);
                self.bytes(n)
            }
        }
    }

    /// Times that are far from now, whatever their unit, or nonsense: nothing expires while a sequence runs.
    fn time(&mut self) -> Vec<u8> {
        let words = [
            "100000000",
            "10000000",
            "0",
            "-1",
            "9223372036854775807",
            "9223372036854775",
            "x",
            "4102444800000",
        ];
        self.pick(&words).as_bytes().to_vec()
    }

    fn option(&mut self) -> Vec<u8> {
        let words = ["NX", "xx", "GET", "KEEPTTL", "EX", "px", "EXAT", "PXAT", "PERSIST", "GT", "lt", "junk"];
        self.pick(&words).as_bytes().to_vec()
    }

    pub fn request(&mut self) -> Vec<Vec<u8>> {
        let name = self.pick(&[
            "GET",
            "get",
            "SET",
            "SET",
            "Set",
            "SETNX",
            "SETEX",
            "PSETEX",
            "GETSET",
            "GETDEL",
            "GETEX",
            "MGET",
            "MSET",
            "MSETNX",
            "APPEND",
            "APPEND",
            "STRLEN",
            "GETRANGE",
            "SUBSTR",
            "SETRANGE",
            "INCR",
            "DECR",
            "INCRBY",
            "DECRBY",
            "DEL",
            "UNLINK",
            "EXISTS",
            "TOUCH",
            "EXPIRE",
            "PEXPIRE",
            "EXPIREAT",
            "PEXPIREAT",
            "PERSIST",
            "EXPIRETIME",
            "TTL",
            "TYPE",
            "RENAME",
            "RENAMENX",
            "DBSIZE",
            "PING",
            "ECHO",
            "SELECT",
            "FLUSHALL",
            "NOSUCH",
            "CLIENT",
            "SCAN",
            "AUTH",
            "HELLO",
            "CONFIG",
            "MEMORY",
        ]);
        let mut r = vec![name.as_bytes().to_vec()];
        match name.to_ascii_uppercase().as_str() {
            "SET" => r.extend([self.key(), self.value()]),
            "SETNX" | "GETSET" | "APPEND" => r.extend([self.key(), self.value()]),
            "SETEX" | "PSETEX" => r.extend([self.key(), self.time(), self.value()]),
            "MSET" | "MSETNX" => {
                for _ in 0..1 + self.below(4) {
                    r.extend([self.key(), self.value()]);
                }
            }
            "MGET" | "DEL" | "UNLINK" | "EXISTS" | "TOUCH" => {
                for _ in 0..1 + self.below(4) {
                    r.push(self.key());
                }
            }
            "GETRANGE" | "SUBSTR" => r.extend([self.key(), self.number(), self.number()]),
            "SETRANGE" => {
                let offset = self.pick(&["0", "5", "1000", "-1", "x", "536870910", "9223372036854775807"]);
                // Half a gigabyte of zeros is a test of its own.
                let part = if offset == "536870910" { b"long".to_vec() } else { self.value() };
                r.extend([self.key(), offset.as_bytes().to_vec(), part]);
            }
            "INCRBY" | "DECRBY" => r.extend([self.key(), self.number()]),
            "EXPIRE" | "PEXPIRE" => r.extend([self.key(), self.time()]),
            "EXPIREAT" => {
                let when = self.pick(&["4102444800", "1", "-1", "x", "9223372036854775807"]);
                r.extend([self.key(), when.as_bytes().to_vec()]);
            }
            "PEXPIREAT" => {
                let when = self.pick(&["4102444800000", "1", "-1", "x"]);
                r.extend([self.key(), when.as_bytes().to_vec()]);
            }
            "RENAME" | "RENAMENX" => r.extend([self.key(), self.key()]),
            "ECHO" => r.push(self.value()),
            "PING" => {
                let n = self.below(2_000);
                let text = self.bytes(n);
                r.extend(n.is_multiple_of(2).then_some(text));
            }
            "SELECT" => r.push(self.number()),
            "FLUSHALL" => r.push(self.pick(&["sync", "ASYNC", "junk"]).as_bytes().to_vec()),
            "NOSUCH" => r.extend([self.value(), self.value()]),
            "CLIENT" => r.push(self.pick(&["GETNAME", "nosuch", "ID "]).as_bytes().to_vec()),
            "SCAN" => r.push(self.pick(&["x", "99999999999999999999999"]).as_bytes().to_vec()),
            "AUTH" => r.push(self.key()),
            "HELLO" => r.push(self.pick(&["1", "4", "x", "02"]).as_bytes().to_vec()),
            "CONFIG" | "MEMORY" => r.push(b"nosuch".to_vec()),
            "DBSIZE" => {}
            _ => r.push(self.key()),
        }
        if matches!(name.to_ascii_uppercase().as_str(), "SET" | "GETEX" | "EXPIRE") && self.below(2) == 0 {
            for _ in 0..=self.below(3) {
                let option = self.option();
                let takes_time = ["EX", "PX"].iter().any(|name| option.eq_ignore_ascii_case(name.as_bytes()));
                let takes_date =
                    ["EXAT", "PXAT"].iter().any(|name| option.eq_ignore_ascii_case(name.as_bytes()));
                r.push(option);
                if takes_time {
                    r.push(self.time());
                } else if takes_date {
                    r.push(b"4102444800000".to_vec());
                }
            }
        }
        match self.below(60) {
            0 => drop(r.pop()),
            1 => r.push(b"more".to_vec()),
            _ => {}
        }
        if r.is_empty() { vec![b"PING".to_vec()] } else { r }
    }
}

/// A greeting without the connection's number.
pub fn without_id(reply: &[u8]) -> Vec<u8> {
    let id = b"$2\r\nid\r\n:";
    match reply.windows(id.len()).position(|part| part == id) {
        Some(at) => {
            let number = at + id.len();
            let digits = reply[number..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            [&reply[..number], &reply[number + digits..]].concat()
        }
        None => reply.to_vec(),
    }
}

/// Whether both replies are the same but for what may differ: times that pass, up to a minute, and connections' numbers.
pub fn agree(request: &[Vec<u8>], ours: &[u8], theirs: &[u8]) -> bool {
    let number = |reply: &[u8]| {
        let text = String::from_utf8_lossy(reply).into_owned();
        text.trim_end().strip_prefix(':').and_then(|number| number.parse::<i64>().ok())
    };
    let name = request[0].to_ascii_uppercase();
    match name.as_slice() {
        b"HELLO" => without_id(ours) == without_id(theirs),
        b"TTL" | b"EXPIRETIME" => match (number(ours), number(theirs)) {
            (Some(ours), Some(theirs)) if ours > 100 && theirs > 100 => ours.abs_diff(theirs) < 60,
            _ => ours == theirs,
        },
        _ => ours == theirs,
    }
}
