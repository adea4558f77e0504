;; Asks for what no host has: the error must name module and field.
(module
  (import "no-such-host" "no-such-call" (func))
  (memory (export "memory") 1)
  (func (export "_start")))
