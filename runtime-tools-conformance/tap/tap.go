// Package tap is the part of github.com/mndrix/tap-go that the validation programs call: Debian has no package of it.
package tap

import (
	"encoding/json"
	"fmt"
	"strings"
)

// T counts the checks of one program and prints them as TAP 13.
type T struct {
	count *int
	todo  bool
}

// New returns a T that has counted nothing.
func New() *T { return &T{count: new(int)} }

// Header prints the version, and the plan if it is known already.
func (t *T) Header(planned int) {
	fmt.Println("TAP version 13")
	if planned > 0 {
		fmt.Printf("1..%d\n", planned)
	}
}

// AutoPlan prints the plan: as many checks as there were.
func (t *T) AutoPlan() { fmt.Printf("1..%d\n", *t.count) }

// Todo returns a T whose checks are known not to hold yet. It counts with this one.
func (t *T) Todo() *T { return &T{count: t.count, todo: true} }

func (t *T) check(held bool, rest string) {
	*t.count++
	word := "ok"
	if !held {
		word = "not ok"
	}
	if t.todo {
		rest += " # TODO"
	}
	fmt.Printf("%s %d %s\n", word, *t.count, rest)
}

// Ok prints one check.
func (t *T) Ok(held bool, description string) { t.check(held, "- "+description) }

// Pass prints one check that held.
func (t *T) Pass(description string) { t.Ok(true, description) }

// Fail prints one check that did not hold.
func (t *T) Fail(description string) { t.Ok(false, description) }

// Skip prints count checks that were not made.
func (t *T) Skip(count int, description string) {
	for range count {
		t.check(true, "# SKIP "+description)
	}
}

// Diagnostic prints a text as comment lines.
func (t *T) Diagnostic(text string) {
	fmt.Println("# " + strings.ReplaceAll(text, "\n", "\n# "))
}

// Diagnosticf is Diagnostic with a format.
func (t *T) Diagnosticf(format string, args ...any) { t.Diagnostic(fmt.Sprintf(format, args...)) }

// YAML prints a value as the block that belongs to the last check. JSON is YAML.
func (t *T) YAML(value any) error {
	text, err := json.MarshalIndent(value, "  ", "  ")
	if err != nil {
		return err
	}
	fmt.Printf("  ---\n  %s\n  ...\n", text)
	return nil
}
