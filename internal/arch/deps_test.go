package arch

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// direct are the modules that a go.mod requires itself.
func direct(t *testing.T, goMod string) (out []string) {
	t.Helper()
	for line := range strings.Lines(readFile(t, goMod)) {
		m := regexp.MustCompile(`^(?:require )?\s*([\w.-]+\.[\w-]+/\S+) v\S+$`).FindStringSubmatch(strings.TrimSpace(line))
		if m != nil {
			out = append(out, m[1])
		}
	}
	if len(out) < 5 {
		t.Fatalf("%s requires %v: has its form changed?", goMod, out)
	}
	return out
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(t), filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// table returns the rows below a heading, each as its cells.
func table(t *testing.T, heading, file string) (rows [][]string) {
	t.Helper()
	_, rest, ok := strings.Cut(readFile(t, file), heading+"\n")
	if !ok {
		t.Fatalf("%s has no table %q", file, heading)
	}
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if !strings.HasPrefix(cells[0], "---") {
			rows = append(rows, cells)
		}
	}
	return rows
}

// Each module that is required directly has its line with the reason, in this module, in
// deploy/check and for npm; and each line has a module.
func TestDependenciesHaveReasons(t *testing.T) {
	version := regexp.MustCompile(`[/ ]v\d+$`)
	listed := map[string]bool{} // whether a module has it
	for _, r := range table(t, "| package | home | why it is there |", "ARCHITECTURE.md") {
		if len(r) != 3 || len(r[2]) < 5 {
			t.Errorf("%q: three cells, and a reason", r)
			continue
		}
		for name := range strings.SplitSeq(r[0], ", ") {
			listed[version.ReplaceAllString(name, "")] = false
		}
	}
	have := append(direct(t, "go.mod"), direct(t, "deploy/check/go.mod")...)
	for _, npm := range []string{"client/js/package.json", "internal/e2e/testdata/interop/package.json"} {
		var p struct{ Dependencies, DevDependencies, OptionalDependencies, PeerDependencies map[string]string }
		if err := json.Unmarshal([]byte(readFile(t, npm)), &p); err != nil {
			t.Fatal(err)
		}
		for _, list := range []map[string]string{p.Dependencies, p.DevDependencies, p.OptionalDependencies, p.PeerDependencies} {
			for name, v := range list {
				if !regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(v) {
					t.Errorf("%s has %s %s: name one version", npm, name, v)
				}
				if npm == "client/js/package.json" {
					t.Errorf("%s needs %s: the SDK has no dependencies", npm, name)
				}
				have = append(have, "npm "+name)
			}
		}
	}
	for _, module := range have {
		name := version.ReplaceAllString(strings.TrimPrefix(module, "github.com/"), "")
		found := ""
		for l := range listed {
			if within(name, l) && len(l) > len(found) {
				found = l
			}
		}
		if found == "" {
			t.Errorf("%s has no line in ARCHITECTURE.md that says why it is there", module)
			continue
		}
		listed[found] = true
	}
	for l, used := range listed {
		if !used {
			t.Errorf("ARCHITECTURE.md says why %s is there, and it is not", l)
		}
	}
}

// Tools run in one version that is written out, and each has its reason.
func TestToolsArePinned(t *testing.T) {
	var reasons []string
	for _, r := range table(t, "| tool | why it is there |", "ARCHITECTURE.md") {
		if len(r) != 2 || len(r[1]) < 5 {
			t.Errorf("%q: two cells, and a reason", r)
		}
		reasons = append(reasons, r[0])
	}
	versions := map[string]string{}
	uses := regexp.MustCompile(`([\w.-]+\.[\w-]+/[\w./-]*/cmd/[\w-]+|typescript)@([^\s"'\x60,]*)`)
	for _, file := range []string{".ci/run", "Taskfile.yml", "deploy/release", "client/js/test/package.test.js"} {
		for _, m := range uses.FindAllStringSubmatch(readFile(t, file), -1) {
			tool, version := m[1], m[2]
			if !regexp.MustCompile(`^v?\d+\.\d+\.\d+$`).MatchString(version) {
				t.Errorf("%s runs %s@%s: name one version", file, tool, version)
			}
			if other, ok := versions[tool]; ok && other != version {
				t.Errorf("%s runs %s %s, and elsewhere it is %s", file, tool, version, other)
			}
			versions[tool] = version
			if !slices.Contains(reasons, tool) {
				t.Errorf("%s runs %s, which has no line in ARCHITECTURE.md", file, tool)
			}
		}
	}
	for _, r := range reasons {
		if versions[r] == "" {
			t.Errorf("ARCHITECTURE.md says why %s is there, and nothing runs it", r)
		}
	}
}
