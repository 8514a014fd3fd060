package arch

import (
	"regexp"
	"strings"
	"testing"
)

// Each setting that SECURITY.md names is one, and each row of its limits has a number.
func TestSecuritySettings(t *testing.T) {
	settings := map[string]bool{}
	for _, file := range []string{"locator/config.go", "wsnode/config.go"} {
		for _, m := range regexp.MustCompile(`env:"([A-Z0-9_]+)"`).FindAllStringSubmatch(readFile(t, file), -1) {
			settings["DIALRING_"+m[1]] = true
		}
	}
	named := regexp.MustCompile(`DIALRING_[A-Z0-9_]+`).FindAllString(readFile(t, "SECURITY.md"), -1)
	for _, name := range named {
		if !settings[name] {
			t.Errorf("SECURITY.md names %s, which is no setting", name)
		}
	}
	rows := table(t, "| what | limit | setting |", "SECURITY.md")
	for _, r := range rows {
		if len(r) != 3 || r[0] == "" || !strings.ContainsAny(r[1], "0123456789") {
			t.Errorf("%q: what, a number, and its setting if there is one", r)
		}
	}
	if len(rows) < 10 || len(named) < 15 {
		t.Errorf("%d limits, and %d settings named", len(rows), len(named))
	}
}
