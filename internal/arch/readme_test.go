package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// Both READMEs have the same sections, code and links.
func TestReadmes(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root(t), name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	en, zh := read("README.md"), read("README.zh-CN.md")
	code := regexp.MustCompile("(?ms)^```.*?^```|^    \\S[^\n]*$")
	if a, b := code.FindAllString(en, -1), code.FindAllString(zh, -1); !slices.Equal(a, b) || len(a) < 8 {
		t.Errorf("their code differs:\n%q\n%q", a, b)
	}
	heading := regexp.MustCompile(`(?m)^## `)
	if a, b := len(heading.FindAllString(en, -1)), len(heading.FindAllString(zh, -1)); a != b || a < 6 {
		t.Errorf("%d and %d sections", a, b)
	}
	links := func(s string) []string {
		var out []string
		for _, m := range regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`).FindAllStringSubmatch(s, -1) {
			out = append(out, m[1])
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	for name, s := range map[string]string{"README.md": en, "README.zh-CN.md": zh} {
		for _, l := range links(s) {
			if _, err := os.Stat(filepath.Join(root(t), filepath.FromSlash(l))); err != nil {
				t.Errorf("%s links to %s, which is not there", name, l)
			}
		}
	}
}
