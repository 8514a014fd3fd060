package main

import (
	"bytes"
	"flag"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/dialring/dialring/internal/machine"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew); got:\n%s\nwant:\n%s", file, got, want)
	}
}

// outcome is what a call of the command left.
type outcome struct {
	code        int
	out, errors string
}

// command runs the command in this process with these variables, as NAME=value, and
// arguments.
func command(t *testing.T, stdin string, env []string, args ...string) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	code := run(t.Context(), args, getenv(env), strings.NewReader(stdin), &out, &errs)
	return outcome{code, out.String(), errs.String()}
}

func getenv(env []string) func(string) string {
	return func(name string) string {
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				return v
			}
		}
		return ""
	}
}

// want fails unless the call ended with code and, on stderr, with text.
func (o outcome) want(t *testing.T, code int, text string) {
	t.Helper()
	if o.code != code || !strings.Contains(o.errors, text) {
		t.Errorf("ended with %d, want %d and %q; stdout:\n%s\nstderr:\n%s", o.code, code, text, o.out, o.errors)
	}
}

func TestHelp(t *testing.T) {
	root := command(t, "", nil, "--help")
	root.want(t, exitDone, "")
	all := "$ dialring --help\n" + root.out
	for _, name := range []string{"listen", "push", "where", "kick", "ring", "plan", "drain", "key", "load", "version"} {
		if !strings.Contains(root.out, "\n  "+name+" ") {
			t.Errorf("the help does not list %s", name)
		}
		o := command(t, "", nil, name, "--help")
		o.want(t, exitDone, "")
		all += "\n$ dialring " + name + " --help\n" + o.out
	}
	golden(t, "help", all)
	if o := command(t, "", nil); o.code != exitDone || o.out != root.out {
		t.Errorf("without a command: %+v", o)
	}
}

func TestCompletion(t *testing.T) {
	o := command(t, "", nil, "completion", "bash")
	o.want(t, exitDone, "")
	if !strings.Contains(o.out, "__start_dialring") {
		t.Errorf("the script for bash is %d bytes", len(o.out))
	}
	bash := machine.Program(t, "bash", "bash")
	cmd := exec.Command(bash, "-n")
	cmd.Stdin = strings.NewReader(o.out)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("bash -n: %v\n%s", err, out)
	}
	if o := command(t, "", nil, "__complete", "dra"); !strings.Contains(o.out, "drain") {
		t.Errorf("dra completes to %q", o.out)
	}
}

// What a shell offers: the last line is how, 4 without the names of files.
func TestCompletes(t *testing.T) {
	t.Parallel()
	env := lying(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"nodes":[{"id":"ws-1","state":"active","sessions":3},{"id":"ws-2","state":"draining"},{"id":"other"}]}`))
	})
	hangs := lying(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	const nodes = "ws-1\tactive, 3 sessions\nws-2\tdraining, 0 sessions\n:4\n"
	for _, c := range []struct {
		env  []string
		args []string
		want string
	}{
		{env, []string{"drain", "ws"}, nodes},
		{env, []string{"plan", "--remove", "ws"}, nodes},
		{env, []string{"drain", "ws-1", ""}, ":4\n"},
		{hangs, []string{"drain", ""}, ":4\n"},
		{nil, []string{"drain", "--locator", nobody(t), ""}, ":4\n"},
		{env, []string{"ring", "--output", ""}, "auto\njson\ntable\n:4\n"},
		{nil, []string{"key", "--scopes", ""}, "push\nread\nadmin\n:4\n"},
		{nil, []string{"key", "--users", ""}, ":4\n"},
		{env, []string{"where", ""}, ":4\n"},
		{env, []string{"push", "alice", ""}, ":4\n"},
		{env, []string{"push", "--data", ""}, ":4\n"},
		{env, []string{"push", "--users", ""}, ":0\n"},
		{env, []string{"ring", "--api-key-file", ""}, ":0\n"},
		{env, []string{"listen", "--token-file", ""}, ":0\n"},
		{env, []string{"load", "--jwt-secret-file", ""}, ":0\n"},
	} {
		if o := command(t, "", c.env, append([]string{"__complete"}, c.args...)...); o.out != c.want {
			t.Errorf("%q completes to %q, want %q", c.args, o.out, c.want)
		}
	}
}

func TestVersion(t *testing.T) {
	human := command(t, "", nil, "version", "-o", "table")
	human.want(t, exitDone, "")
	if !strings.HasPrefix(human.out, "dialring ") || !strings.Contains(human.out, " go1.") {
		t.Errorf("version: %q", human.out)
	}
	var b build
	decode(t, command(t, "", nil, "version").out, &b)
	if b.Version == "" || !strings.HasPrefix(b.Go, "go1.") || !strings.Contains(b.Platform, "/") {
		t.Errorf("version: %+v", b)
	}
	info := &debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abcdef"}, {Key: "vcs.modified", Value: "true"}}}
	info.Main.Version = "v1.2.3"
	if b := buildOf(info); b.Version != "v1.2.3" || b.Commit != "abcdef" || !b.Modified {
		t.Errorf("%+v", b)
	}
	if b := buildOf(nil); b.Version != "(devel)" {
		t.Errorf("%+v", b)
	}
	version = "1.2.4"
	t.Cleanup(func() { version = "" })
	if b := buildOf(info); b.Version != "1.2.4" || b.Commit != "abcdef" {
		t.Errorf("%+v", b)
	}
}
