;; memory64-bounds: an access beyond the end of a 64-bit memory, far above 4 GiB. Must trap, not reach anything.
(module
  (memory (export "memory") i64 1)
  (func $beyond (drop (i64.load (i64.const 0x7fff00000000))))
  (func (export "_start") (call $beyond)))
