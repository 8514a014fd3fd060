package check

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// ours are variables of these files that are no settings of the programs.
var ours = regexp.MustCompile(`^DIALRING_(NATS_(SERVER|SERVER_ROUTES|(NODE|LOCATOR|APPLICATION|OPERATOR|SYSTEM|ROUTE)_PASSWORD)|DOMAIN|VERSION|CLUSTER)$`)

// Every name of a setting in any file, and every relative link in the guide, leads somewhere.
func TestNames(t *testing.T) {
	var all []string
	for _, p := range programs {
		for s := range p.settings {
			all = append(all, s)
		}
	}
	seen := 0
	err := filepath.WalkDir("..", func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() && e.Name() == "check" {
			if err == nil {
				err = fs.SkipDir
			}
			return err
		}
		if !e.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for _, name := range regexp.MustCompile(`DIALRING_[A-Z_]*[A-Z]`).FindAllString(string(b), -1) {
			seen++
			if !slices.Contains(all, name) && !ours.MatchString(name) {
				t.Errorf("%s has %s, which nobody reads", file, name)
			}
		}
		return nil
	})
	if err != nil || seen < 100 {
		t.Errorf("%d names, %v", seen, err)
	}
	links := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`).FindAllStringSubmatch(deployFile(t, "README.md"), -1)
	if len(links) < 10 {
		t.Errorf("%d links", len(links))
	}
	for _, l := range links {
		if _, err := os.Stat(filepath.Join("..", l[1])); err != nil {
			t.Errorf("the guide links to %s: %v", l[1], err)
		}
	}
	for _, d := range []string{"docker", "edge", "kubernetes", "nats", "prometheus", "systemd"} {
		if !strings.Contains(deployFile(t, "README.md"), "]("+d+")") {
			t.Errorf("the guide does not tell of %s", d)
		}
	}
}

// Whoever has pages in browsers finds in each example what lets them in, as a program takes it.
func TestExamplesTellOfOrigins(t *testing.T) {
	examples, err := filepath.Glob("../*/*.env.example")
	overlays, err2 := filepath.Glob("../kubernetes/overlays/*/*.env.example")
	examples = slices.DeleteFunc(append(examples, overlays...), func(f string) bool {
		return slices.Contains([]string{"nats.env.example", "admin.env.example"}, filepath.Base(f))
	})
	if err != nil || err2 != nil || len(examples) < 8 {
		t.Fatalf("examples: %v %v %v", examples, err, err2)
	}
	values := map[string]bool{}
	for _, file := range examples {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`(?m)^# DIALRING_ALLOWED_ORIGINS=(\S+)$`).FindSubmatch(b)
		if m == nil {
			t.Errorf("%s does not tell of DIALRING_ALLOWED_ORIGINS", file)
			continue
		}
		values[string(m[1])] = true
	}
	for v := range values {
		programs["locator"].run(t, map[string]string{"DIALRING_ALLOWED_ORIGINS": v, "DIALRING_NATS_URL": "nats://127.0.0.1:1"})
	}
}
