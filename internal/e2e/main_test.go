package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"go.uber.org/goleak"
)

// bin is where TestMain builds the programs.
var bin string

// atOnce tests run at a time, or more on a larger machine. A test waits most of the time,
// for processes that start, a ring that changes, a pace that is kept: alone, one takes a
// third of two cores. With the race detector it is two thirds, and a heavy one has its loads:
// then as many tests run as there are cores. Tests without t.Parallel run before them, one by
// one: they judge how long something takes or how much comes, load both cores by themselves,
// or see all processes of the machine.
const atOnce = 3

func TestMain(m *testing.M) {
	if role := roles[os.Getenv(roleEnv)]; role != nil {
		os.Exit(role())
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "dialring-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	for name, pkg := range map[string]string{"locator": "./locator/cmd/locator", "wsnode": "./wsnode/cmd/wsnode", "quickstart": "./examples/quickstart", "dialring": "./client/cmd/dialring"} {
		args := []string{"build", "-o", filepath.Join(dir, name)}
		if raceFlag != "" {
			args = append(args, raceFlag)
		}
		cmd := exec.Command("go", append(args, pkg)...)
		cmd.Dir = filepath.Join("..", "..")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, out)
			return 1
		}
	}
	flag.Parse()
	if n := flag.Lookup("test.parallel"); raceFlag == "" && !withHeavy() && n.Value.String() == n.DefValue {
		_ = n.Value.Set(strconv.Itoa(max(atOnce, runtime.GOMAXPROCS(0))))
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}
