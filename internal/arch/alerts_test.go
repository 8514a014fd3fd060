package arch

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dialring/dialring/internal/machine"
	"github.com/dialring/dialring/internal/wire"
)

var (
	metricName    = regexp.MustCompile(`\b(dialring_[a-z_]+)(\{[^}]*\})?`)
	labelName     = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)\s*"`)
	labelAndValue = regexp.MustCompile(`([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
	byLabels      = regexp.MustCompile(`\bby \(([^)]*)\)`)
	ofScrape      = []string{"instance", "job", "le"} // labels that Prometheus adds, and that of a histogram
)

// exportedMetrics reads the table of metrics, which a test of internal/e2e compares with what
// the programs really export: labels by name.
func exportedMetrics(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root(t), "deploy", "OBSERVABILITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(dialring_[a-z_]+)` \\| (\\w+) \\| ([a-z, ]*) \\|").FindAllStringSubmatch(string(b), -1) {
		var labels []string
		for l := range strings.SplitSeq(m[3], ",") {
			labels = append(labels, strings.TrimSpace(l))
		}
		out[m[1]] = labels
		if m[2] == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				out[m[1]+suffix] = append(labels, "le")
			}
			delete(out, m[1]) // it has no series of that name
		}
	}
	if len(out) < 40 {
		t.Fatalf("only %d metrics in the table", len(out))
	}
	return out
}

// badExpression says what of an expression no program exports.
func badExpression(metrics map[string][]string, expr string) (bad []string, used []string) {
	labels := slices.Clone(ofScrape)
	for _, m := range metricName.FindAllStringSubmatch(expr, -1) {
		own, ok := metrics[m[1]]
		if !ok {
			bad = append(bad, m[1])
			continue
		}
		used = append(used, m[1])
		labels = append(labels, own...)
		for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(own, l[1]) && !slices.Contains(ofScrape, l[1]) {
				bad = append(bad, m[1]+" has no label "+l[1])
			}
		}
	}
	for _, m := range byLabels.FindAllStringSubmatch(expr, -1) {
		for l := range strings.SplitSeq(m[1], ",") {
			if l = strings.TrimSpace(l); l != "" && !slices.Contains(labels, l) {
				bad = append(bad, "by "+l)
			}
		}
	}
	return bad, used
}

func TestBadExpression(t *testing.T) {
	metrics := map[string][]string{"dialring_a_total": {"result"}, "dialring_b": nil}
	for expr, want := range map[string]int{
		`sum by (result) (rate(dialring_a_total{result!="ok"}[5m])) / on () dialring_b`: 0,
		`dialring_c`: 1, `dialring_a_total{kind="x"}`: 1, `sum by (kind) (dialring_b)`: 1, `dialring_b{result="x"}`: 1,
	} {
		if bad, _ := badExpression(metrics, expr); len(bad) != want {
			t.Errorf("%s: %v, want %d", expr, bad, want)
		}
	}
}

// labelValues are the values that a label of a metric may have, where the programs list them.
var labelValues = map[string][]string{
	"dialring_nodes state":                 {wire.StateJoining, wire.StateActive, wire.StateSuspect, wire.StateDraining},
	"dialring_session_closes_total reason": closeTexts(),
}

func closeTexts() (texts []string) {
	for code := 1000; code < 5000; code++ {
		texts = append(texts, wire.CloseText(code))
	}
	return texts
}

// programLiterals are all strings that are written in the sources of both programs.
func programLiterals(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, dir := range []string{"locator", "wsnode", "internal"} {
		err := filepath.WalkDir(filepath.Join(root(t), dir), func(file string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
					if v, err := strconv.Unquote(l.Value); err == nil {
						out[v] = true
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// badValues says which values of labels in an expression no program gives them: those that a
// program lists, or that stand in a program's source, or a status of HTTP.
func badValues(literals map[string]bool, expr string) (bad []string) {
	for _, m := range metricName.FindAllStringSubmatch(expr, -1) {
		for _, l := range labelAndValue.FindAllStringSubmatch(m[2], -1) {
			if slices.Contains(ofScrape, l[1]) {
				continue
			}
			values := []string{l[3]}
			if strings.HasSuffix(l[2], "~") {
				values = strings.Split(l[3], "|")
			}
			for _, v := range values {
				listed, ok := labelValues[m[1]+" "+l[1]]
				if status, err := strconv.Atoi(v); err == nil && !ok && http.StatusText(status) != "" {
					continue
				}
				if ok && !slices.Contains(listed, v) || !ok && !literals[v] {
					bad = append(bad, fmt.Sprintf("%s of %s is never %q", l[1], m[1], v))
				}
			}
		}
	}
	return bad
}

func TestBadValues(t *testing.T) {
	literals := map[string]bool{"ok": true, "failed": true}
	for expr, want := range map[string]int{
		`dialring_a{result=~"ok|failed"} + dialring_a{result!="101"}`: 0,
		`dialring_a{result=~"ok|fails"}`:                              1, `dialring_a{result!="1"}`: 1, `dialring_a{job=~"x.*"}`: 0,
		`dialring_nodes{state="suspect"}`: 0, `dialring_nodes{state="ok"}`: 1,
		`dialring_session_closes_total{reason="too slow"}`: 0, `dialring_session_closes_total{reason="slow"}`: 1,
	} {
		if bad := badValues(literals, expr); len(bad) != want {
			t.Errorf("%s: %v, want %d", expr, bad, want)
		}
	}
}

// The alert rules and the dashboard use metrics and labels that there are; each alert has a
// section that says what to do, and each metric a place on the dashboard.
func TestAlertsAndDashboard(t *testing.T) {
	metrics := exportedMetrics(t)
	dir := filepath.Join(root(t), "deploy")
	rules, err := os.ReadFile(filepath.Join(dir, "prometheus", "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	guide, err := os.ReadFile(filepath.Join(dir, "ALERTS.md"))
	if err != nil {
		t.Fatal(err)
	}
	// Rule by rule: what one metric has is no label of another rule's.
	used := map[string]bool{}
	literals := programLiterals(t)
	for _, rule := range strings.Split(regexp.MustCompile(`(?m)^\s*#.*$`).ReplaceAllString(string(rules), ""), "- alert: ")[1:] {
		name, _, _ := strings.Cut(rule, "\n")
		bad, uses := badExpression(metrics, rule)
		bad = append(bad, badValues(literals, rule)...)
		if len(bad) > 0 {
			t.Errorf("%s uses %v, which nobody exports", name, bad)
		}
		for _, u := range uses {
			used[u] = true
		}
	}
	if len(used) < 25 {
		t.Errorf("alerts.yml uses only %d metrics", len(used))
	}
	var alerts, sections []string
	for _, m := range regexp.MustCompile(`(?m)^ *- alert: (\w+)$`).FindAllStringSubmatch(string(rules), -1) {
		alerts = append(alerts, m[1])
	}
	for _, m := range regexp.MustCompile(`(?m)^## (Dialring\w+)$`).FindAllStringSubmatch(string(guide), -1) {
		sections = append(sections, m[1])
	}
	if !slices.Equal(alerts, sections) || len(alerts) < 20 {
		t.Errorf("the alerts are\n%v\nand ALERTS.md has sections for\n%v", alerts, sections)
	}
	if bad, _ := badExpression(metrics, regexp.MustCompile(`_duration_seconds\b`).ReplaceAllString(string(guide), "_duration_seconds_bucket")); len(bad) > 0 {
		t.Errorf("ALERTS.md speaks of %v, which nobody exports", bad)
	}

	b, err := os.ReadFile(filepath.Join(dir, "grafana", "dialring.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		UID    string
		Panels []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &board); err != nil || board.UID == "" {
		t.Fatalf("dialring.json: %v", err)
	}
	shown := map[string]bool{}
	ids := map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] || p.Title == "" || p.GridPos.X+p.GridPos.W > 24 || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %d %q has no title, place, id or query of its own", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			bad, used := badExpression(metrics, target.Expr)
			bad = append(bad, badValues(literals, target.Expr)...)
			if len(bad) > 0 {
				t.Errorf("panel %q uses %v, which nobody exports", p.Title, bad)
			}
			for _, u := range used {
				shown[u] = true
			}
		}
	}
	for m := range metrics {
		if !shown[m] && !strings.HasSuffix(m, "_sum") && !strings.HasSuffix(m, "_count") {
			t.Errorf("the dashboard does not show %s", m)
		}
	}
}

// Prometheus itself takes the rules, and the queries of the dashboard.
func TestPromtool(t *testing.T) {
	tool := machine.Program(t, "promtool", "prometheus")
	b, err := os.ReadFile(filepath.Join(root(t), "deploy", "grafana", "dialring.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal(b, &board); err != nil {
		t.Fatal(err)
	}
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var queries []rule
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			queries = append(queries, rule{fmt.Sprintf("query_%d", len(queries)), strings.NewReplacer("$__rate_interval", "5m", "$node", "n", "$locator", "l").Replace(target.Expr)})
		}
	}
	// JSON is YAML as well.
	b, err = json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": queries}}})
	if err != nil {
		t.Fatal(err)
	}
	dashboard := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(dashboard, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool, "check", "rules", filepath.Join(root(t), "deploy", "prometheus", "alerts.yml"), dashboard).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
