package check

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// unit is a file of systemd: by section and name, all values.
type unit map[string]map[string][]string

// known are the names that units here may have; systemd itself only warns of others.
var known = map[string][]string{
	"Unit": {"Description", "Documentation", "Wants", "After", "StartLimitIntervalSec"},
	"Service": {"ExecStart", "Environment", "EnvironmentFile", "WorkingDirectory", "StateDirectory", "StateDirectoryMode", "Restart", "RestartSec", "RestartPreventExitStatus",
		"KillMode", "TimeoutStopSec", "LimitNOFILE", "DynamicUser", "SupplementaryGroups", "NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateUsers", "ProtectKernelTunables",
		"ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ProtectClock", "ProtectHostname", "ProtectProc", "RestrictAddressFamilies", "RestrictNamespaces",
		"RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute", "RemoveIPC", "UMask", "SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber",
		"CapabilityBoundingSet", "AmbientCapabilities"},
	"Install": {"WantedBy"},
}

func parseUnit(t *testing.T, name string) unit {
	t.Helper()
	u, section := unit{}, ""
	for line := range strings.Lines(deployFile(t, "systemd/"+name)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if m := regexp.MustCompile(`^\[(\w+)\]$`).FindStringSubmatch(line); m != nil {
			section = m[1]
			u[section] = map[string][]string{}
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		if !ok || !slices.Contains(known[section], k) {
			t.Errorf("%s: %q in [%s]", name, line, section)
			continue
		}
		u[section][k] = append(u[section][k], v)
	}
	return u
}

// envFile reads an EnvironmentFile.
func envFile(t *testing.T, name string) map[string]string {
	t.Helper()
	env := map[string]string{}
	for line := range strings.Lines(deployFile(t, name)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		if !ok || v == "" {
			t.Errorf("%s: %q", name, line)
		}
		env[k] = v
	}
	return env
}

// panicStatus is what a program of Go ends with when it panics.
func panicStatus(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() { panic(0) }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "panics"), source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(filepath.Join(dir, "panics"))
	if err := cmd.Run(); err == nil || cmd.ProcessState == nil {
		t.Fatalf("it does not panic: %v", err)
	}
	return strconv.Itoa(cmd.ProcessState.ExitCode())
}

func TestSystemd(t *testing.T) {
	panics := panicStatus(t)
	m := regexp.MustCompile(`(?m)^g (\w+) -$`).FindStringSubmatch(deployFile(t, "systemd/dialring.sysusers"))
	if m == nil {
		t.Fatal("dialring.sysusers makes no group")
	}
	group := m[1]
	for name, p := range map[string]*program{"locator.service": programs["locator"], "wsnode@.service": programs["wsnode"]} {
		u := parseUnit(t, name)
		s := u["Service"]
		one := func(section, k string) string {
			t.Helper()
			if v := u[section][k]; len(v) == 1 {
				return v[0]
			}
			t.Errorf("%s: %s is there %d times", name, k, len(u[section][k]))
			return ""
		}
		if one("Service", "ExecStart") != "/usr/local/bin/"+p.name {
			t.Errorf("%s runs %v", name, s["ExecStart"])
		}
		env := envFile(t, "systemd/"+p.name+".env.example")
		for _, e := range s["Environment"] {
			k, v, _ := strings.Cut(e, "=")
			env[k] = strings.ReplaceAll(v, "%i", "ws-1")
		}
		for k := range env {
			p.knows(t, name, k)
		}
		stop, err := time.ParseDuration(one("Service", "TimeoutStopSec"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if p.name == "locator" && stop < leaves {
			t.Errorf("%s is killed after %s, and may take %s", name, stop, leaves)
		}
		if p.name == "wsnode" {
			p.drains(t, name, env, stop)
			if one("Service", "EnvironmentFile") != "/etc/dialring/wsnode-%i.env" || env["DIALRING_NODE_ID"] != "ws-1" {
				t.Errorf("%s: %v", name, s)
			}
		}
		if n, err := strconv.Atoi(one("Service", "LimitNOFILE")); err != nil || n < 1<<20 {
			t.Errorf("%s: %v open files", name, s["LimitNOFILE"])
		}
		if one("Service", "Restart") != "always" || one("Unit", "StartLimitIntervalSec") != "0" || !strings.Contains(one("Unit", "After"), "network-online.target") || one("Unit", "Wants") != "network-online.target" {
			t.Errorf("%s is not started again for ever, after the network", name)
		}
		// Its user is nobody's: the group is how it reads what settings name, and the guide and the
		// unit say how files get there.
		if one("Service", "DynamicUser") != "yes" || one("Service", "SupplementaryGroups") != group {
			t.Errorf("%s does not run in the group %s: %v", name, group, s["SupplementaryGroups"])
		}
		for where, text := range map[string]string{name: deployFile(t, "systemd/"+name), "the guide": deployFile(t, "README.md")} {
			for _, command := range []string{"install -m 644 dialring.sysusers /usr/lib/sysusers.d/dialring.conf && systemd-sysusers\n", "install -d -m 750 -g " + group + " /etc/dialring\n", "install -m 640 -g " + group + " "} {
				if !strings.Contains(text, command) {
					t.Errorf("%s does not say %q", where, command)
				}
			}
		}
		// What it prevents is what a program really ends with when settings are wrong.
		cmd := exec.Command(p.path)
		cmd.Env = []string{"DIALRING_NO_SUCH_SETTING=1"}
		_ = cmd.Run()
		if one("Service", "RestartPreventExitStatus") != strconv.Itoa(cmd.ProcessState.ExitCode()) {
			t.Errorf("%s: wrong settings end with %d", name, cmd.ProcessState.ExitCode())
		}
		if slices.Contains(strings.Fields(one("Service", "RestartPreventExitStatus")), panics) {
			t.Errorf("%s: after a panic, which ends with %s, it is not started again", name, panics)
		}
		startWith(t, &overlay{name: name}, p, env)
	}
}

// systemd's own view of the units, where it is installed.
func TestSystemdAnalyze(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("DIALRING_FULL") == "1" {
			t.Fatal("systemd-analyze is missing: install systemd")
		}
		t.Skip("systemd-analyze is missing; with DIALRING_FULL=1 that is a failure")
	}
	dir := t.TempDir()
	for name, instance := range map[string]string{"locator.service": "locator.service", "wsnode@.service": "wsnode@ws-1.service"} {
		// It wants the program to be there.
		p := programs["wsnode"]
		if name == "locator.service" {
			p = programs["locator"]
		}
		text := strings.ReplaceAll(deployFile(t, "systemd/"+name), "/usr/local/bin/"+p.name, p.path)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if name != instance {
			if err := os.Symlink(name, filepath.Join(dir, instance)); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(analyze, "verify", "--recursive-errors=no", filepath.Join(dir, instance))
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "nknown") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=15", filepath.Join(dir, instance)).CombinedOutput()
		if err != nil {
			t.Errorf("%s is exposed more than 1.5: %v\n%s", name, err, out)
		}
	}
}

// A process that has only the group, by systemd-sysusers' own making of it, reads a file as
// the guide leaves it, inside of a user namespace of its own (PrivateUsers=yes), too.
func TestSystemdGroup(t *testing.T) {
	for _, tool := range []string{"systemd-sysusers", "setpriv", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("DIALRING_FULL") == "1" {
				t.Fatalf("%s is missing: install systemd and util-linux", tool)
			}
			t.Skipf("%s is missing; with DIALRING_FULL=1 that is a failure", tool)
		}
	}
	if os.Getuid() != 0 {
		if os.Getenv("DIALRING_FULL") == "1" {
			t.Fatal("only root can take another user's place")
		}
		t.Skip("only root can take another user's place; with DIALRING_FULL=1 that is a failure")
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	sysusers, err := filepath.Abs("../systemd/dialring.sysusers")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-sysusers", "--root="+dir, sysusers).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "etc", "group"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^dialring:[^:]*:(\d+):`).FindStringSubmatch(string(b))
	if m == nil {
		t.Fatalf("groups: %s", b)
	}
	gid, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	// Not below t.TempDir, whose parents others may not enter.
	etc, err := os.MkdirTemp("/tmp", "dialring-etc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(etc) })
	key := filepath.Join(etc, "tls.key")
	if err := os.WriteFile(key, []byte("key"), 0o640); err != nil {
		t.Fatal(err)
	}
	for file, mode := range map[string]os.FileMode{etc: 0o750, key: 0o640} {
		if err := cmp.Or(os.Chown(file, 0, gid), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
	cat := func(groups string, more ...string) error {
		args := append([]string{"--reuid=61234", "--regid=61234", groups}, more...)
		out, err := exec.Command("setpriv", append(args, "cat", key)...).CombinedOutput()
		if err == nil && string(out) != "key" {
			t.Errorf("it reads %q", out)
		}
		return err
	}
	if cat("--clear-groups") == nil {
		t.Error("everyone reads it")
	}
	if err := cat("--groups=" + m[1]); err != nil {
		t.Errorf("who has the group does not read it: %v", err)
	}
	if exec.Command("unshare", "--user", "true").Run() != nil {
		t.Log("no user namespaces here: not tried inside of one")
	} else if err := cat("--groups="+m[1], "unshare", "--user"); err != nil {
		t.Errorf("who has the group does not read it in a user namespace: %v", err)
	}
}

// Names that the kernel has, and limits that fit those of the units.
func TestSysctl(t *testing.T) {
	values := map[string]string{}
	for line := range strings.Lines(deployFile(t, "systemd/90-dialring.conf")) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		k, v, ok := strings.Cut(line, " = ")
		if !ok {
			t.Errorf("%q", line)
		}
		may := strings.HasPrefix(k, "-") // it may not be there
		k = strings.TrimPrefix(k, "-")
		values[k] = v
		if _, err := os.Stat("/proc/sys/" + strings.ReplaceAll(k, ".", "/")); err != nil && !may {
			t.Errorf("the kernel has no %s", k)
		}
	}
	// A port that something listens on must not be taken by a connection out.
	reserved := map[int]bool{}
	for part := range strings.SplitSeq(values["net.ipv4.ip_local_reserved_ports"], ",") {
		first, last, _ := strings.Cut(part, "-")
		from, err := strconv.Atoi(first)
		to, err2 := strconv.Atoi(cmp.Or(last, first))
		if err != nil || err2 != nil {
			t.Errorf("reserved ports: %q", part)
		}
		for ; from <= to; from++ {
			reserved[from] = true
		}
	}
	listen := []string{programs["locator"].port(t, nil, "DIALRING_NATS_LISTEN"), "6222", "8222"} // the last two of deploy/nats
	for name, p := range programs {
		for s := range listeners[name] {
			listen = append(listen, p.port(t, nil, s))
		}
	}
	for _, port := range listen {
		if n, err := strconv.Atoi(port); err != nil || !reserved[n] {
			t.Errorf("port %s is not reserved", port)
		}
	}
	open, err := strconv.Atoi(values["fs.nr_open"])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"locator.service", "wsnode@.service"} {
		if n, err := strconv.Atoi(parseUnit(t, name)["Service"]["LimitNOFILE"][0]); err != nil || n > open {
			t.Errorf("%s wants %d open files, fs.nr_open is %d", name, n, open)
		}
	}
}
