package natsd

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A server's own address in the list of routes is not one of the others'.
func TestOthers(t *testing.T) {
	for name, c := range map[string]struct {
		routes []string
		listen string
		want   []string
	}{
		"by address":        {[]string{"127.0.0.1:6222", "198.51.100.1:6222", "198.51.100.2:6222"}, ":6222", []string{"198.51.100.1:6222", "198.51.100.2:6222"}},
		"by name":           {[]string{"198.51.100.1:6222", "localhost:6222"}, "0.0.0.0:6222", []string{"198.51.100.1:6222"}},
		"another port":      {[]string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}, "127.0.0.1:2", []string{"127.0.0.1:1", "127.0.0.1:3"}},
		"not in the list":   {[]string{"198.51.100.1:6222", "198.51.100.2:6222"}, ":6222", []string{"198.51.100.1:6222", "198.51.100.2:6222"}},
		"nobody else's":     {[]string{"127.0.0.1:6222"}, ":6222", []string{"127.0.0.1:6222"}},
		"a host of nowhere": {[]string{"bad host:6222", "127.0.0.1:6222"}, ":6222", []string{"bad host:6222"}},
	} {
		if got := others(t.Context(), c.routes, c.listen); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// The name of a server is its store's; a file that a crash left empty is none.
func TestCheckStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	o := Options{Dir: dir, Name: "host-1", Routes: &Routes{}}
	file := filepath.Join(dir, nameFile)
	check := func(want string) {
		t.Helper()
		if name, err := checkStore(o); err != nil || name != want {
			t.Errorf("name %q, %v; want %q", name, err, want)
		}
		if b, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("the file has %q, %v", b, err)
		}
	}
	check("host-1")
	o.Name = "host-2" // a container's name changes
	check("host-1")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("host-2")
	o.Name, o.NameSet = "host-3", true
	if name, err := checkStore(o); err == nil || !strings.Contains(err.Error(), "host-2") {
		t.Errorf("another name for a store: %q, %v", name, err)
	}
	o.Routes, o.NameSet = nil, false
	if _, err := checkStore(o); err == nil {
		t.Error("the store of one of several, for a server that is alone")
	}
}
