// The Go guest: more than 2 MB of its own runtime; reads and writes files, says its environment.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
)

func main() {
	step := "hello"
	if len(os.Args) > 1 {
		step = os.Args[1]
	}
	switch step {
	case "hello":
		fmt.Println("hello from wasm (go)")
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "sum": // sum IN OUT
		data, err := os.ReadFile(os.Args[2])
		if err == nil {
			err = os.WriteFile(os.Args[3], []byte(fmt.Sprintf("%x\n", sha256.Sum256(data))), 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("sum written")
	default:
		fmt.Fprintln(os.Stderr, "probe: unknown step", step)
		os.Exit(2)
	}
}
