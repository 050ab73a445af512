;; The program under attack: does one kind of work, chosen by its first argument (a letter and 16 hexadecimal digits), checks
;; what it can check itself, and prints what src/programs.rs computes too. Any errno ends it with 100 + errno.
(module $work
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_seek" (func $fd_seek (param i32 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $fd_close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_rename" (func $path_rename (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_unlink_file" (func $path_unlink (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_accept" (func $accept (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  ;; 0 vectors, 64 line, 128 poll, 256 arguments, 1024 names, 4096 buffer of 16 KiB, 65536 data of 512 KiB
  (memory (export "memory") 9)
  (data (i32.const 1024) "file-afile-b")

  (func $check (param $errno i32)
    (if (local.get $errno) (then (call $exit (i32.add (i32.const 100) (local.get $errno))))))
  (func $next (param $x i64) (result i64)
    (i64.add (i64.mul (local.get $x) (i64.const 6364136223846793005)) (i64.const 1442695040888963407)))
  (func $write (param $fd i32) (param $at i32) (param $len i32)
    (loop $more
      (if (local.get $len) (then
        (i32.store (i32.const 0) (local.get $at))
        (i32.store (i32.const 4) (local.get $len))
        (call $check (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
        (local.set $at (i32.add (local.get $at) (i32.load (i32.const 8))))
        (local.set $len (i32.sub (local.get $len) (i32.load (i32.const 8))))
        (br $more)))))
  (func $digit (param $d i32) (result i32)
    (i32.add (local.get $d)
      (select (i32.const 48) (i32.const 87) (i32.lt_u (local.get $d) (i32.const 10)))))
  (func $line (param $x i64) (local $i i32)
    (loop $more
      (i32.store8 (i32.sub (i32.const 79) (local.get $i)) (call $digit (i32.and (i32.wrap_i64 (local.get $x)) (i32.const 15))))
      (local.set $x (i64.shr_u (local.get $x) (i64.const 4)))
      (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 16))))
    (i32.store8 (i32.const 80) (i32.const 10))
    (call $write (i32.const 1) (i32.const 64) (i32.const 17)))

  ;; c: arithmetic with divisions over 512 KiB of memory; four lines.
  (func $mix (param $x i64) (param $n i32) (result i64) (local $p i32)
    (loop $more
      (local.set $x (call $next (local.get $x)))
      (local.set $p (i32.add (i32.const 65536)
        (i32.shl (i32.and (i32.wrap_i64 (i64.shr_u (local.get $x) (i64.const 40))) (i32.const 0xffff)) (i32.const 3))))
      (i64.store (local.get $p) (i64.xor (i64.load (local.get $p)) (local.get $x)))
      (local.set $x (i64.xor (local.get $x) (i64.rotl (i64.load (local.get $p)) (i64.const 5))))
      (local.set $x (i64.add (local.get $x)
        (i64.div_u (local.get $x) (i64.or (i64.shr_u (local.get $x) (i64.const 33)) (i64.const 1)))))
      (br_if $more (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $x))
  (func $compute (param $x i64) (local $n i32) (local $i i32)
    (local.set $n (i32.add (i32.const 50000) (i32.and (i32.wrap_i64 (local.get $x)) (i32.const 0x1ffff))))
    (loop $more
      (local.set $x (call $mix (local.get $x) (local.get $n)))
      (call $line (local.get $x))
      (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 4)))))

  ;; s: eight short sleeps, the clock never goes back; a line after each.
  (func $sleep (param $x i64) (local $i i32) (local $before i64)
    (loop $more
      (local.set $x (call $next (local.get $x)))
      (i64.store (i32.const 128) (i64.const 7))
      (i32.store8 (i32.const 136) (i32.const 0))
      (i32.store (i32.const 144) (i32.const 1))
      (i64.store (i32.const 152) (i64.add (i64.const 100000) (i64.shr_u (local.get $x) (i64.const 44))))
      (i64.store (i32.const 160) (i64.const 0))
      (i32.store16 (i32.const 168) (i32.const 0))
      (call $check (call $poll (i32.const 128) (i32.const 192) (i32.const 1) (i32.const 248)))
      (if (i32.ne (i32.load (i32.const 248)) (i32.const 1)) (then (call $exit (i32.const 90))))
      (call $check (i32.load16_u (i32.const 200)))
      (call $check (call $clock (i32.const 1) (i64.const 0) (i32.const 240)))
      (if (i64.lt_u (i64.load (i32.const 240)) (local.get $before)) (then (call $exit (i32.const 91))))
      (local.set $before (i64.load (i32.const 240)))
      (call $line (local.get $x))
      (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 8)))))

  ;; g: grows by pieces, finds them zero, fills them, and at the end finds all of it as it was written.
  (func $grow (param $x i64) (local $i i32) (local $at i32) (local $end i32) (local $y i64) (local $seed i64)
    (local.set $seed (local.get $x))
    (local.set $at (i32.const 589824))
    (local.set $end (local.get $at))
    (loop $more
      (local.set $x (call $next (local.get $x)))
      (if (i32.eq (memory.grow (i32.add (i32.const 1) (i32.wrap_i64 (i64.shr_u (local.get $x) (i64.const 60))))) (i32.const -1))
        (then (call $exit (i32.const 92))))
      (local.set $end (i32.shl (memory.size) (i32.const 16)))
      (loop $fill
        (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then (call $exit (i32.const 93))))
        (local.set $y (call $next (i64.add (local.get $y) (local.get $seed))))
        (i64.store (local.get $at) (local.get $y))
        (br_if $fill (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 64))) (local.get $end))))
      (drop (call $yield))
      (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 24))))
    (local.set $at (i32.const 589824))
    (local.set $y (i64.const 0))
    (loop $look
      (local.set $y (call $next (i64.add (local.get $y) (local.get $seed))))
      (if (i64.ne (i64.load (local.get $at)) (local.get $y)) (then (call $exit (i32.const 94))))
      (if (i64.ne (i64.load offset=8 (local.get $at)) (i64.const 0)) (then (call $exit (i32.const 95))))
      (br_if $look (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 64))) (local.get $end))))
    (call $line (local.get $y)))

  (func $pattern (param $x i64) (param $len i32) (result i64) (local $i i32)
    (loop $more
      (local.set $x (call $next (local.get $x)))
      (i64.store (i32.add (i32.const 4096) (local.get $i)) (local.get $x))
      (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 8))) (local.get $len))))
    (local.get $x))
  (func $open (param $name i32) (param $flags i32) (result i32)
    (call $check (call $path_open (i32.const 3) (i32.const 0) (local.get $name) (i32.const 6) (local.get $flags)
      (i64.const 0x1fffffff) (i64.const 0x1fffffff) (i32.const 0) (i32.const 16)))
    (i32.load (i32.const 16)))
  ;; f: a file is written, renamed, read back and removed, four times over; a line each.
  (func $files (param $x i64) (local $round i32) (local $i i32) (local $fd i32) (local $y i64) (local $z i64) (local $k i32)
    (loop $again
      (local.set $fd (call $open (i32.const 1024) (i32.const 9)))
      (local.set $y (local.get $x))
      (local.set $i (i32.const 0))
      (loop $more
        (local.set $y (call $pattern (local.get $y) (i32.const 16384)))
        (call $write (local.get $fd) (i32.const 4096) (i32.const 16384))
        (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 8))))
      (call $check (call $fd_close (local.get $fd)))
      (call $check (call $path_rename (i32.const 3) (i32.const 1024) (i32.const 6) (i32.const 3) (i32.const 1030) (i32.const 6)))
      (local.set $fd (call $open (i32.const 1030) (i32.const 0)))
      (local.set $z (local.get $x))
      (local.set $i (i32.const 0))
      (loop $read
        (i32.store (i32.const 0) (i32.const 4096))
        (i32.store (i32.const 4) (i32.const 8))
        (call $check (call $fd_read (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
        (if (i32.ne (i32.load (i32.const 8)) (i32.const 8)) (then (call $exit (i32.const 96))))
        (local.set $k (i32.const 0))
        (loop $skip
          (local.set $z (call $next (local.get $z)))
          (if (i32.eqz (local.get $k)) (then
            (if (i64.ne (i64.load (i32.const 4096)) (local.get $z)) (then (call $exit (i32.const 97))))))
          (br_if $skip (i32.lt_u (local.tee $k (i32.add (local.get $k) (i32.const 1))) (i32.const 64))))
        (call $check (call $fd_seek (local.get $fd) (i64.const 504) (i32.const 1) (i32.const 24)))
        (br_if $read (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 256))))
      (if (i64.ne (local.get $z) (local.get $y)) (then (call $exit (i32.const 98))))
      (call $check (call $fd_close (local.get $fd)))
      (call $check (call $path_unlink (i32.const 3) (i32.const 1030) (i32.const 6)))
      (call $line (local.get $y))
      (local.set $x (local.get $y))
      (br_if $again (i32.lt_u (local.tee $round (i32.add (local.get $round) (i32.const 1))) (i32.const 4)))))

  ;; o: 40 pieces of up to 16 KiB to standard output, every fourth one to standard error.
  (func $output (param $x i64) (local $i i32) (local $len i32)
    (loop $more
      (local.set $x (call $pattern (local.get $x) (i32.const 16384)))
      (local.set $len (i32.and (i32.wrap_i64 (i64.shr_u (local.get $x) (i64.const 48))) (i32.const 0x3fff)))
      (call $write (select (i32.const 2) (i32.const 1) (i32.eqz (i32.and (local.get $i) (i32.const 3)))) (i32.const 4096) (local.get $len))
      (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 40)))))

  ;; i: standard input, each byte changed, to standard output.
  (func $echo (param $x i64) (param $in i32) (param $out i32) (local $i i32) (local $len i32)
    (loop $more
      (i32.store (i32.const 0) (i32.const 4096))
      (i32.store (i32.const 4) (i32.const 5000))
      (call $check (call $fd_read (local.get $in) (i32.const 0) (i32.const 1) (i32.const 8)))
      (local.set $len (i32.load (i32.const 8)))
      (if (local.get $len) (then
        (local.set $i (i32.const 0))
        (loop $each
          (i32.store8 (i32.add (i32.const 4096) (local.get $i))
            (i32.xor (i32.load8_u (i32.add (i32.const 4096) (local.get $i))) (i32.wrap_i64 (local.get $x))))
          (br_if $each (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get $len))))
        (call $write (local.get $out) (i32.const 4096) (local.get $len))
        (br $more)))))

  ;; v: the same for one client of the socket that listens.
  (func $serve (param $x i64) (local $client i32)
    (call $check (call $accept (i32.const 4) (i32.const 0) (i32.const 16)))
    (local.set $client (i32.load (i32.const 16)))
    (call $echo (local.get $x) (local.get $client) (local.get $client))
    (call $check (call $fd_close (local.get $client))))

  ;; t: some work, then one of four traps.
  (func $deep (param $x i64) (result i64)
    (i64.add (i64.const 1) (call $deep (i64.add (local.get $x) (i64.const 1)))))
  (func $trap (param $x i64)
    (call $line (call $mix (local.get $x) (i32.const 100000)))
    (block $stack (block $outside (block $division (block $unreachable
      (br_table $unreachable $division $outside $stack (i32.and (i32.wrap_i64 (local.get $x)) (i32.const 3))))
      (unreachable))
      (drop (i64.div_u (local.get $x) (i64.extend_i32_u (i32.load (i32.const 40)))))
      (return))
      (i64.store (i32.const 0x7fffff00) (local.get $x))
      (return))
    (drop (call $deep (local.get $x))))

  (func (export "_start") (local $at i32) (local $mode i32) (local $x i64) (local $i i32) (local $d i32)
    (call $check (call $args_get (i32.const 256) (i32.const 280)))
    (local.set $at (i32.load (i32.const 260)))
    (local.set $mode (i32.load8_u (local.get $at)))
    (loop $more
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (local.set $d (i32.load8_u (local.get $at)))
      (local.set $x (i64.or (i64.shl (local.get $x) (i64.const 4)) (i64.extend_i32_u
        (i32.sub (local.get $d) (select (i32.const 87) (i32.const 48) (i32.gt_u (local.get $d) (i32.const 96)))))))
      (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 16))))
    (if (i32.eq (local.get $mode) (i32.const 99)) (then (call $compute (local.get $x))))
    (if (i32.eq (local.get $mode) (i32.const 115)) (then (call $sleep (local.get $x))))
    (if (i32.eq (local.get $mode) (i32.const 103)) (then (call $grow (local.get $x))))
    (if (i32.eq (local.get $mode) (i32.const 102)) (then (call $files (local.get $x))))
    (if (i32.eq (local.get $mode) (i32.const 111)) (then (call $output (local.get $x))))
    (if (i32.eq (local.get $mode) (i32.const 105)) (then (call $echo (local.get $x) (i32.const 0) (i32.const 1))))
    (if (i32.eq (local.get $mode) (i32.const 118)) (then (call $serve (local.get $x))))
    (if (i32.eq (local.get $mode) (i32.const 116)) (then (call $trap (local.get $x))))
    (call $exit (i32.const 7))))
