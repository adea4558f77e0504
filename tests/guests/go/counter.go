// The key-value guest: counts in both interfaces that can.
package export_wasi_cli_run

import (
	"fmt"
	"strconv"

	. "go.bytecodealliance.org/pkg/wit/types"
	"wit_component/wasi_keyvalue_atomics"
	"wit_component/wasi_keyvalue_store"
)

func Run() Result[Unit, Unit] {
	bucket := wasi_keyvalue_store.Open("").Ok()
	count, _ := strconv.Atoi(string(bucket.Get("plain").Ok().SomeOr(nil)))
	text := strconv.Itoa(count + 1)
	bucket.Set("plain", []uint8(text)).Ok()
	fmt.Printf("plain %s, atomic %d\n", text, wasi_keyvalue_atomics.Increment(bucket, "atomic", 1).Ok())
	return Ok[Unit, Unit](Unit{})
}
