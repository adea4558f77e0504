// The Go guest: more than 2 MB of its own runtime. The steps of rust/probe.rs.
package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, fs.ErrNotExist):
		return "NotFound"
	}
	return err.Error()
}

func main() {
	args := append(os.Args, "", "", "")
	switch step := args[1]; step {
	case "", "hello":
		fmt.Println("hello from wasm (go)")
	case "args":
		for i, arg := range os.Args {
			fmt.Printf("arg %d [%s]\n", i, arg)
		}
	case "env":
		for _, pair := range os.Environ() {
			fmt.Printf("env [%s]\n", pair)
		}
	case "exit":
		status, _ := strconv.Atoi(args[2])
		os.Exit(status)
	case "read":
		text, err := os.ReadFile(args[2])
		if err != nil {
			fmt.Printf("read %s: %s\n", args[2], outcome(err))
		} else {
			fmt.Printf("read %s: [%s]\n", args[2], text)
		}
	case "write":
		fmt.Printf("write %s: %s\n", args[2], outcome(os.WriteFile(args[2], []byte(args[3]), 0o644)))
	case "list":
		entries, _ := os.ReadDir(args[2])
		names := []string{}
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		fmt.Printf("list %s: %s\n", args[2], strings.Join(names, " "))
	case "cat":
		io.Copy(os.Stdout, os.Stdin)
	case "panic":
		panic("asked for")
	case "clock":
		fmt.Printf("realtime %d\n", time.Now().Unix())
	case "sum": // sum IN OUT
		data, err := os.ReadFile(args[2])
		if err == nil {
			err = os.WriteFile(args[3], []byte(fmt.Sprintf("%x\n", sha256.Sum256(data))), 0o644)
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
