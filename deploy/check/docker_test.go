package check

import (
	"debug/elf"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

const root = "../.."

// Each instruction of the Dockerfile, with lines that go on joined.
func dockerfile(t *testing.T) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(strings.ReplaceAll(deployFile(t, "docker/Dockerfile"), "\\\n", " ")) {
		if line = strings.Join(strings.Fields(line), " "); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	return out
}

// What the Dockerfile builds, built here, of what the build gets to see: programs that need
// no library, by a Go that is new enough.
func TestDockerfile(t *testing.T) {
	lines := dockerfile(t)
	stages := slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return !strings.HasPrefix(l, "FROM ") })
	mod, err := os.ReadFile(root + "/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	wants := regexp.MustCompile(`(?m)^go 1\.(\d+)\.(\d+)`).FindStringSubmatch(string(mod))
	has := regexp.MustCompile(`^FROM golang:1\.(\d+)\.(\d+)-\w+ AS build$`).FindStringSubmatch(stages[0])
	if has == nil || has[1] != wants[1] || len(has[2]) < len(wants[2]) || has[2] < wants[2] {
		t.Errorf("%s, and go.mod wants %s", stages[0], wants[0])
	}
	if len(stages) != 2 || !strings.HasPrefix(stages[1], "FROM gcr.io/distroless/static-debian12:nonroot") {
		t.Errorf("stages: %v", stages)
	}
	last := lines[slices.Index(lines, stages[1]):]
	if !slices.Contains(last, "USER 65532:65532") || slices.ContainsFunc(last, func(l string) bool { return strings.HasPrefix(l, "RUN ") }) {
		t.Errorf("the image: %v", last)
	}
	var build string
	for _, l := range lines {
		if strings.Contains(l, "go build") {
			build = l
		}
	}
	m := regexp.MustCompile(`CGO_ENABLED=0 .*go build -trimpath -buildvcs=false -ldflags "([^"]*)" -o /out/ (.*)$`).FindStringSubmatch(build)
	if m == nil {
		t.Fatalf("it builds by %q", build)
	}
	// As what is released, with the same Go.
	release := exec.Command(filepath.Join("..", "release"), "flags")
	flags, err := release.Output()
	if err != nil || !strings.Contains(build, strings.ReplaceAll(strings.TrimSpace(string(flags)), "=VERSION", "=$VERSION")) {
		t.Errorf("it builds by\n%s\nand deploy/release by %s %v", build, flags, err)
	}
	script, err := os.ReadFile(filepath.Join("..", "release"))
	image := regexp.MustCompile(`FROM golang:([0-9.]+)-`).FindStringSubmatch(stages[0])
	if err != nil || image == nil || !strings.Contains(string(script), ":-go"+image[1]+"}") {
		t.Errorf("%s, and deploy/release has another Go: %v", stages[0], err)
	}
	// An argument is known from where its stage names it.
	args := lines[slices.Index(lines, stages[0]):slices.Index(lines, build)]
	if !slices.ContainsFunc(args, func(l string) bool { return strings.HasPrefix(l, "ARG VERSION=") }) {
		t.Error("the build does not know VERSION")
	}
	ldflags := strings.ReplaceAll(m[1], "$VERSION", "1.2.3-test")
	context := dockerContext(t)
	out := t.TempDir()
	for _, pkg := range strings.Fields(m[2]) {
		program := filepath.Join(out, filepath.Base(pkg))
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", program, pkg)
		cmd.Dir, cmd.Env = context, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", pkg, err, b)
			continue
		}
		f, err := elf.Open(program)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
			t.Errorf("%s is not static", pkg)
		}
		f.Close()
		ask := []string{"-version"}
		if filepath.Base(pkg) == "dialring" {
			ask = []string{"version", "-o", "table"}
		}
		if b, err := exec.Command(program, ask...).CombinedOutput(); err != nil || !strings.HasPrefix(string(b), filepath.Base(pkg)+" 1.2.3-test ") {
			t.Errorf("%s %s: %v, %s", pkg, ask, err, b)
		}
		if !slices.ContainsFunc(last, func(l string) bool {
			return strings.HasPrefix(l, "COPY --from=build ") && strings.Contains(l, "/out/"+filepath.Base(pkg)+" ") && strings.HasSuffix(l, " /")
		}) {
			t.Errorf("%s is built and not copied", pkg)
		}
	}
}

// dockerContext copies what Dockerfile.dockerignore leaves of the repository, by the library
// that Docker uses for it.
func dockerContext(t *testing.T) string {
	t.Helper()
	patterns, err := ignorefile.ReadAll(strings.NewReader(deployFile(t, "docker/Dockerfile.dockerignore")))
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	err = filepath.WalkDir(root, func(file string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, file)
		if err != nil || name == "." {
			return err
		}
		if e.IsDir() {
			if name == ".git" || name == "deploy" {
				return fs.SkipDir
			}
			return nil
		}
		if skip, err := ignored.MatchesOrParentMatches(name); skip || err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".git/config", "deploy/docker/node.env", "data/x", "wsnode/config_test.go", "README.md"} {
		if skip, err := ignored.MatchesOrParentMatches(name); !skip || err != nil {
			t.Errorf("%s gets into the build: %v", name, err)
		}
	}
	return dir
}

var composeEnv = []string{"DIALRING_DOMAIN=ws.example.com", "GRAFANA_PASSWORD=secret"}

// composeProject reads compose.yaml as Compose does, of a copy of deploy in which examples of
// secrets are the secrets.
func composeProject(t *testing.T, dir string, env []string) (*types.Project, error) {
	t.Helper()
	o, err := cli.NewProjectOptions([]string{filepath.Join(dir, "docker", "compose.yaml")}, cli.WithEnv(env), cli.WithResolvedPaths(true))
	if err != nil {
		t.Fatal(err)
	}
	p, err := o.LoadProject(t.Context())
	if err != nil {
		return nil, err
	}
	return p.WithServicesEnvironmentResolved(true)
}

func copyDeploy(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, part := range []string{"docker", "edge", "grafana", "nats", "prometheus"} {
		if err := os.CopyFS(filepath.Join(dir, part), os.DirFS(filepath.Join("..", part))); err != nil {
			t.Fatal(err)
		}
	}
	// Who followed the guide has files with secrets beside the examples.
	secrets, err := filepath.Glob(filepath.Join(dir, "docker", "*.env"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range secrets {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCompose(t *testing.T) {
	dir := copyDeploy(t)
	if _, err := composeProject(t, dir, composeEnv); err == nil {
		t.Error("it is started without the files with secrets")
	}
	for _, f := range []string{"nats", "node", "locator"} {
		untracked(t, filepath.Join("docker", f+".env"))
		example := deployFile(t, "docker/"+f+".env.example")
		if regexp.MustCompile(`(?m)^\w+=$`).MatchString(example) {
			t.Errorf("%s.env.example has an empty value, which NATS takes for a password", f)
		}
		filled := regexp.MustCompile(`(?m)^# (DIALRING_\w+=)$`).ReplaceAllString(example, "${1}p1")
		if err := os.WriteFile(filepath.Join(dir, "docker", f+".env"), []byte(filled), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	untracked(t, filepath.Join("docker", "admin.key"))
	for i := range composeEnv {
		if _, err := composeProject(t, dir, slices.Delete(slices.Clone(composeEnv), i, i+1)); err == nil {
			t.Errorf("it is started without %s", composeEnv[i])
		}
	}
	p, err := composeProject(t, dir, composeEnv)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for name, s := range p.Services {
		checkImage(t, name, s.Image)
		for _, v := range s.Volumes {
			if v.Type != types.VolumeTypeBind || strings.HasSuffix(v.Source, "/tls") {
				continue
			}
			if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("%s mounts what is not there: %v", name, err)
			}
			if !v.ReadOnly {
				t.Errorf("%s may write to %s", name, v.Source)
			}
		}
		if len(s.Command) > 0 {
			if prog := programs[strings.TrimPrefix(s.Command[0], "/")]; prog != nil {
				count[prog.name]++
				checkComposeProgram(t, p, &s, prog)
			}
		}
		if strings.HasPrefix(name, "nats-") {
			count["nats"]++
			checkComposeNATS(t, &s)
		}
	}
	if count["nats"] != 3 || count["locator"] != 2 || count["wsnode"] != 3 {
		t.Errorf("services: %v", count)
	}
	checkComposeEdge(t, p, dir)
	checkPrometheus(t, p)
	// From outside only the edge can be reached.
	for name, s := range p.Services {
		for _, x := range s.Ports {
			if name != "edge" && x.HostIP != "127.0.0.1" {
				t.Errorf("%s can be reached from outside: %+v", name, x)
			}
		}
	}
}

func checkImage(t *testing.T, name, image string) {
	t.Helper()
	_, tag, _ := strings.Cut(image, ":")
	if tag == "" || tag == "latest" || !strings.HasPrefix(image, "dialring:") && !regexp.MustCompile(`\d+\.\d+\.\d+`).MatchString(tag) {
		t.Errorf("%s has the image %s", name, image)
	}
	if strings.HasPrefix(image, "nats:") {
		mod, err := os.ReadFile(root + "/go.mod")
		if err != nil {
			t.Fatal(err)
		}
		if v := regexp.MustCompile(`nats-server/v2 v(\S+)`).FindStringSubmatch(string(mod)); v == nil || image != "nats:"+v[1]+"-alpine" {
			t.Errorf("%s is %s, and tests run NATS %v", name, image, v)
		}
	}
}

func composeSettings(s *types.ServiceConfig) map[string]string {
	env := map[string]string{}
	for k, v := range s.Environment {
		if v != nil {
			env[k] = *v
		}
	}
	return env
}

func address(s *types.ServiceConfig) string { return s.Networks["inside"].Ipv4Address }

func checkComposeProgram(t *testing.T, p *types.Project, s *types.ServiceConfig, prog *program) {
	t.Helper()
	env := composeSettings(s)
	for k := range env {
		prog.knows(t, s.Name, k)
		if !strings.HasPrefix(k, "DIALRING_") {
			t.Errorf("%s gets %s", s.Name, k)
		}
	}
	if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || len(s.Ports) != 0 || s.Restart != types.RestartPolicyUnlessStopped || s.HealthCheck != nil {
		t.Errorf("%s: %+v", s.Name, s)
	}
	if len(s.DependsOn) != 3 {
		t.Errorf("%s waits for %v", s.Name, s.DependsOn)
	}
	if s.Ulimits["nofile"] == nil || s.Ulimits["nofile"].Soft < 1<<20 {
		t.Errorf("%s: limits %v", s.Name, s.Ulimits)
	}
	if host := strings.Split(prog.settings["DIALRING_ADMIN_LISTEN"], ":")[0]; host == "" || env["DIALRING_ADMIN_LISTEN"] != ":"+prog.port(t, nil, "DIALRING_ADMIN_LISTEN") {
		t.Errorf("%s: Prometheus does not reach %s", s.Name, env["DIALRING_ADMIN_LISTEN"])
	}
	checkComposeSecret(t, p, s, env["DIALRING_ADMIN_KEY_FILE"])
	for u := range strings.SplitSeq(env["DIALRING_NATS_URL"], ",") {
		x, err := url.Parse(strings.NewReplacer("<", "", ">", "").Replace(u))
		if err != nil || p.Services[x.Hostname()].Name == "" || x.Port() != "4222" || x.User.Username() != map[string]string{"wsnode": "node", "locator": "locator"}[prog.name] {
			t.Errorf("%s has NATS at %s: %v", s.Name, u, err)
		}
	}
	if prog.name != "wsnode" {
		if wait := time.Duration(*s.StopGracePeriod); wait < leaves {
			t.Errorf("%s is killed after %s, and may take %s", s.Name, wait, leaves)
		}
		if d := p.Environment["DIALRING_DOMAIN"]; !slices.Contains(s.ExtraHosts[d], address(ptr(p.Services["edge"]))) {
			t.Errorf("%s cannot ask public URLs: %v", s.Name, s.ExtraHosts)
		}
		return
	}
	prog.drains(t, s.Name, env, time.Duration(*s.StopGracePeriod))
	if env["DIALRING_NODE_ID"] != s.Name || env["DIALRING_PEER_URL"] != "http://"+s.Name+":"+prog.port(t, env, "DIALRING_PEER_LISTEN") ||
		env["DIALRING_NODE_URL"] != "wss://ws.example.com/n/"+s.Name+"/v1/ws" {
		t.Errorf("%s: %v", s.Name, env)
	}
	if env["DIALRING_INBOX_PARTITIONS"] != natsPartitions(t) {
		t.Errorf("%s: %s partitions, NATS has permissions for %s", s.Name, env["DIALRING_INBOX_PARTITIONS"], natsPartitions(t))
	}
}

// checkComposeSecret fails unless a service has the key of the admin listeners in this file,
// and may read it: the guide gives the file to the group of the programs.
func checkComposeSecret(t *testing.T, p *types.Project, s *types.ServiceConfig, file string) {
	t.Helper()
	name, below := strings.CutPrefix(file, "/run/secrets/")
	if !below || filepath.Base(p.Secrets[name].File) != "admin.key" || !slices.ContainsFunc(s.Secrets, func(x types.ServiceSecretConfig) bool {
		return x.Source == name && (x.Target == "" || x.Target == file)
	}) {
		t.Errorf("%s has the admin key in %q, and secrets %+v", s.Name, file, s.Secrets)
	}
	if len(s.Command) == 0 && !slices.Contains(s.GroupAdd, "65532") {
		t.Errorf("%s may not read the admin key: groups %v", s.Name, s.GroupAdd)
	}
}

func ptr[V any](v V) *V { return &v }

// natsPartitions counts the inbox streams that deploy/nats/accounts.conf lists.
func natsPartitions(t *testing.T) string {
	t.Helper()
	return fmt.Sprint(strings.Count(deployFile(t, "nats/accounts.conf"), `"$JS.API.STREAM.CREATE.dialring_inbox_`))
}

func checkComposeNATS(t *testing.T, s *types.ServiceConfig) {
	t.Helper()
	env := composeSettings(s)
	used := map[string]bool{}
	for _, name := range []string{"nats.conf", "cluster.conf", "accounts.conf"} {
		for line := range strings.Lines(deployFile(t, "nats/"+name)) {
			line, _, _ = strings.Cut(line, "#")
			for _, m := range regexp.MustCompile(`: \$([A-Z_]+)`).FindAllStringSubmatch(line, -1) {
				used[m[1]] = true
				if _, there := env[m[1]]; !there {
					t.Errorf("%s: %s needs %s", s.Name, name, m[1])
				}
			}
		}
	}
	for k := range env {
		if !used[k] {
			t.Errorf("%s gets %s, and has no use for it", s.Name, k)
		}
	}
	if env["DIALRING_NATS_SERVER"] != s.Name || !strings.Contains(env["DIALRING_NATS_SERVER_ROUTES"], "@"+s.Name+":6222") {
		t.Errorf("%s: %v", s.Name, env)
	}
	conf := deployFile(t, "nats/nats.conf")
	if !strings.Contains(conf, `http: "127.0.0.1:8222"`) || !strings.Contains(s.HealthCheck.Test[len(s.HealthCheck.Test)-1], "http://127.0.0.1:8222/healthz") {
		t.Errorf("%s: its health is asked by %v", s.Name, s.HealthCheck.Test)
	}
	if !slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool {
		return v.Type == types.VolumeTypeVolume && v.Source == s.Name && strings.Contains(conf, `store_dir: "`+v.Target+`"`)
	}) {
		t.Errorf("%s does not keep its data: %+v", s.Name, s.Volumes)
	}
}

// checkComposeEdge compares what nginx includes, and the addresses in it, with the services.
func checkComposeEdge(t *testing.T, p *types.Project, dir string) {
	t.Helper()
	edge := p.Services["edge"]
	files := map[string]string{} // inside the container, to outside
	for _, v := range edge.Volumes {
		files[v.Target] = v.Source
	}
	if src := files["/etc/nginx/nginx.conf"]; src != filepath.Join(dir, "edge", "nginx.conf") {
		t.Errorf("nginx has %s", src)
	}
	for _, m := range regexp.MustCompile(`(?m)^\s*include (\S+);`).FindAllStringSubmatch(deployFile(t, "edge/nginx.conf"), -1) {
		src := files["/etc/nginx/"+m[1]]
		if b, err := os.ReadFile(src); err != nil || len(b) == 0 {
			t.Errorf("nginx includes %s: %v", m[1], err)
		}
	}
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(files["/etc/nginx/nginx/"+name])
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var want, have []string
	for name, s := range p.Services {
		if len(s.Command) == 0 {
			continue
		}
		switch s.Command[0] {
		case "/locator":
			want = append(want, "server "+address(&s)+":"+programs["locator"].port(t, composeSettings(&s), "DIALRING_LISTEN"))
		case "/wsnode":
			want = append(want, name+" "+address(&s)+":"+programs["wsnode"].port(t, composeSettings(&s), "DIALRING_LISTEN"))
		}
	}
	for line := range strings.Lines(read("locators.conf") + read("nodes.conf")) {
		if f := strings.Fields(strings.TrimSuffix(strings.TrimSpace(line), ";")); len(f) > 0 && f[0] != "#" {
			have = append(have, f[0]+" "+f[1])
		}
	}
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(want, have) {
		t.Errorf("nginx knows %v, there are %v", have, want)
	}
	if l := read("listen.conf"); !strings.Contains(l, "server_name "+p.Environment["DIALRING_DOMAIN"]+";") || files["/etc/nginx/tls"] == "" {
		t.Errorf("nginx listens by %s", l)
	}
}
