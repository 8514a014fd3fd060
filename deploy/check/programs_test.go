package check

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program is one of the two, as it says itself.
type program struct {
	name     string
	path     string
	settings map[string]string // with defaults
}

var programs = map[string]*program{}

const patience = 30 * time.Second // a bound on hangs, not an expectation

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "dialring-deploy")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		for name, pkg := range map[string]string{"locator": "./locator/cmd/locator", "wsnode": "./wsnode/cmd/wsnode"} {
			p := &program{name: name, path: filepath.Join(dir, name), settings: map[string]string{}}
			cmd := exec.Command("go", "build", "-o", p.path, pkg)
			cmd.Dir = filepath.Join("..", "..")
			if out, err := cmd.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, out)
				return 1
			}
			help, err := exec.Command(p.path, "-h").Output()
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			p.read(help)
			programs[name] = p
		}
		return m.Run()
	}())
}

// read takes names and defaults from what -h prints, by the columns of its head.
func (p *program) read(help []byte) {
	at, end := 0, 0
	for line := range strings.Lines(string(help)) {
		if strings.HasPrefix(line, "NAME") {
			at, end = strings.Index(line, "DEFAULT"), strings.Index(line, "MEANING")
		}
		if name, _, _ := strings.Cut(line, " "); strings.HasPrefix(name, "DIALRING_") && len(line) > end {
			p.settings[name] = strings.TrimSpace(line[at:end])
			if strings.Contains(line[:at], "(or a file)") {
				p.settings[name+"_FILE"] = ""
			}
		}
	}
}

func TestPrograms(t *testing.T) {
	for name, p := range programs {
		if len(p.settings) < 20 || !strings.HasPrefix(p.settings["DIALRING_LISTEN"], ":80") {
			t.Errorf("%s -h was not understood: %v", name, p.settings)
		}
	}
}

// knows fails unless each name is a setting of the program: it does not start with one that
// it does not know.
func (p *program) knows(t *testing.T, where string, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, there := p.settings[n]; strings.HasPrefix(n, "DIALRING_") && !there {
			t.Errorf("%s: %s has no setting %s", where, p.name, n)
		}
	}
}

// port of a listener, by the setting's value or default.
func (p *program) port(t *testing.T, env map[string]string, setting string) string {
	t.Helper()
	addr := p.settings[setting]
	if v, there := env[setting]; there {
		addr = v
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatalf("%s of %s: %v", setting, p.name, err)
	}
	return port
}

// listeners are the settings that are listeners of HTTP, and their names in a log line.
var listeners = map[string]map[string]string{
	"locator": {"DIALRING_LISTEN": "listen", "DIALRING_ADMIN_LISTEN": "admin"},
	"wsnode":  {"DIALRING_LISTEN": "listen", "DIALRING_PEER_LISTEN": "peer", "DIALRING_ADMIN_LISTEN": "admin"},
}

// duration of a setting, by its value or default.
func (p *program) duration(t *testing.T, env map[string]string, setting string) time.Duration {
	t.Helper()
	v := p.settings[setting]
	if s, there := env[setting]; there {
		v = s
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("%s of %s: %v", setting, p.name, err)
	}
	return d
}

// margin is what a node needs after DIALRING_DRAIN_TIMEOUT, at most: closing, last writes.
const margin = 15 * time.Second

// drains fails unless a supervisor waits long enough before it kills a node.
func (p *program) drains(t *testing.T, where string, env map[string]string, waits time.Duration) {
	t.Helper()
	if most := p.duration(t, env, "DIALRING_DRAIN_TIMEOUT") + margin; waits < most {
		t.Errorf("%s kills a node after %s, it may take %s to drain", where, waits, most)
	}
}

// leaves is what a locator may take to end: 5 s for requests, 20 s for relayed sessions, margin.
const leaves = 25*time.Second + margin

// run starts a program in development mode on free ports, and returns where its listeners
// are, by setting. More settings may be given.
func (p *program) run(t *testing.T, env map[string]string) map[string]string {
	t.Helper()
	all := map[string]string{"DIALRING_DEV": "true", "DIALRING_LOG_FORMAT": "json"}
	for s := range listeners[p.name] {
		all[s] = "127.0.0.1:0"
	}
	maps.Copy(all, env)
	cmd := exec.Command(p.path)
	cmd.Dir = t.TempDir()
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "DIALRING_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	for k, v := range all {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(out); s.Scan(); {
			if bytes.Contains(s.Bytes(), []byte(`"event":"listening"`)) {
				lines <- s.Text()
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
	})
	select {
	case line := <-lines:
		at := map[string]string{}
		for setting, name := range listeners[p.name] {
			at[setting] = regexp.MustCompile(`"` + name + `":"([^"]*)"`).FindStringSubmatch(line)[1]
		}
		if m := regexp.MustCompile(`"nats":"([^"]*)"`).FindStringSubmatch(line); m != nil {
			at["nats"] = m[1]
		}
		return at
	case <-done:
		t.Fatalf("%s ended before it listened, with %v", p.name, all)
	case <-time.After(patience):
		t.Fatalf("%s does not listen", p.name)
	}
	return nil
}

// answers are the statuses of paths, by setting of the listener, of running programs.
func get(t *testing.T, addr, path string, headers ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// adminKey is of the admin listeners of both.
const adminKey = "an admin key of the tests"

// both starts a locator with NATS and a node, once the test needs them.
func both(t *testing.T) map[string]map[string]string {
	t.Helper()
	l := programs["locator"].run(t, map[string]string{"DIALRING_NATS_LISTEN": "127.0.0.1:0", "DIALRING_DATA_SYNC": "interval", "DIALRING_ADMIN_KEY": adminKey})
	n := programs["wsnode"].run(t, map[string]string{"DIALRING_NODE_ID": "ws-0", "DIALRING_NATS_URL": l["nats"], "DIALRING_ADMIN_KEY": adminKey})
	return map[string]map[string]string{"locator": l, "wsnode": n}
}

// deployFile reads a file of deploy.
func deployFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
