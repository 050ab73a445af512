;; empty: the smallest command: does nothing, exits with 0. Start-up times are measured with it.
(module (func (export "_start")))
