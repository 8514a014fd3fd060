// Package machine is for tests that need something of the machine they run on: a program,
// root, a network. What is missing skips the test, and says so; where everything has to be
// tested (DIALRING_FULL=1, as in CI) it fails it.
package machine

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// Full tells whether nothing may be left out.
func Full() bool { return os.Getenv("DIALRING_FULL") == "1" }

// Lacks ends the test for what is missing, with what to do about it.
func Lacks(t testing.TB, format string, args ...any) {
	t.Helper()
	what := fmt.Sprintf(format, args...)
	if Full() {
		t.Fatal(what)
	}
	t.Skip(what + "; with DIALRING_FULL=1 that is a failure")
}

// Program is where a program is that the test cannot do without, from this package of Debian's.
func Program(t testing.TB, name, from string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Lacks(t, "%s is missing: apt-get install %s", name, from)
	}
	return path
}
