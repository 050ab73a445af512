;; missing-import: needs something nobody provides. Nacre must name module and function in its error.
(module
  (import "env" "launch_rocket" (func (param i32)))
  (func (export "_start")))
