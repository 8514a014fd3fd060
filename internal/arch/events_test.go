package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// logged finds the calls of a logger in a file, and returns the events that they name and
// the lines of those that name none.
func logged(t *testing.T, name string, src any) (events []string, without []string) {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, name, src, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error", "Log", "With"}, sel.Sel.Name) || !isLogger(sel.X) {
			return true
		}
		found := false
		for i, a := range call.Args {
			if text(a) == "event" && i+1 < len(call.Args) {
				found = true
				if e := text(call.Args[i+1]); e != "" {
					events = append(events, e)
				} else {
					without = append(without, fset.Position(call.Pos()).String()+": its event is no literal")
				}
			}
		}
		if !found && sel.Sel.Name != "With" {
			without = append(without, fset.Position(call.Pos()).String())
		}
		return true
	})
	return events, without
}

func isLogger(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.Ident:
		return strings.EqualFold(e.Name, "log") || strings.EqualFold(e.Name, "slog")
	case *ast.SelectorExpr:
		return strings.EqualFold(e.Sel.Name, "log") || e.Sel.Name == "logger"
	case *ast.CallExpr: // bus.logger()
		return isLogger(e.Fun)
	}
	return false
}

func text(e ast.Expr) string {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return ""
	}
	s, err := strconv.Unquote(l.Value)
	if err != nil {
		return ""
	}
	return s
}

// Each line of a log has an event, and deploy/OBSERVABILITY.md has a row for each.
func TestEventsAreDocumented(t *testing.T) {
	have := map[string]bool{}
	walk(t, func(name, file string) {
		program := strings.HasPrefix(name, "locator/") || strings.HasPrefix(name, "wsnode/") || strings.HasPrefix(name, "internal/") && !strings.HasPrefix(name, "internal/e2e/")
		if !program || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return
		}
		events, without := logged(t, file, nil)
		for _, e := range events {
			have[e] = true
		}
		for _, w := range without {
			t.Errorf("a line of the log without an event: %s", w)
		}
	})
	b, err := os.ReadFile(filepath.Join(root(t), "deploy", "OBSERVABILITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	doc := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (?:debug|info|warn|error)").FindAllStringSubmatch(string(b), -1) {
		doc[m[1]] = true
	}
	for e := range have {
		if !doc[e] {
			t.Errorf("deploy/OBSERVABILITY.md has no row for the event %s", e)
		}
	}
	for e := range doc {
		if !have[e] {
			t.Errorf("deploy/OBSERVABILITY.md has the event %s, which nobody logs", e)
		}
	}
}

// What the test looks for is found.
func TestLogged(t *testing.T) {
	events, without := logged(t, "x.go", `package x
func f() {
	n.log.Info("a", "event", "first")
	slog.Warn("b", "event", name)
	k.o.Log.Error("c", "node", "event")
	other.Info("d")
}`)
	if !slices.Equal(events, []string{"first"}) || len(without) != 2 {
		t.Errorf("events %v, without %v", events, without)
	}
}
