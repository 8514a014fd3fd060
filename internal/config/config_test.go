package config

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

// settings has one of each kind.
type settings struct {
	Name   string        `env:"NODE_ID" desc:"a name"`
	Weight int           `env:"WEIGHT" default:"1" desc:"a number"`
	Wait   time.Duration `env:"MOVE_DEADLINE" default:"20s" desc:"a time"`
	Secret Secret        `env:"USER_JWT_SECRET" desc:"a secret"`
	Keys   []string      `env:"API_KEYS" desc:"a list"`
	Free   int           `env:"FREE" desc:"a number without a default"`
	Level  string        `env:"LOG_LEVEL" default:"info" desc:"the log"`
	Format string        `env:"LOG_FORMAT" default:"text" desc:"the log"`

	Other string // no setting
}

// only has these settings in the environment, and no others of ours.
func only(t *testing.T, env map[string]string) {
	t.Helper()
	for _, e := range os.Environ() {
		if name, old, _ := strings.Cut(e, "="); strings.HasPrefix(name, Prefix) {
			t.Setenv(name, old) // puts it back at the end
			os.Unsetenv(name)
		}
	}
	for k, v := range env {
		t.Setenv(Prefix+k, v)
	}
}

func TestLoad(t *testing.T) {
	only(t, map[string]string{"NODE_ID": "ws-1", "WEIGHT": "3", "MOVE_DEADLINE": "1m30s", "USER_JWT_SECRET": "s3cret", "API_KEYS": "a,b", "FREE": "0"})
	t.Setenv("WEIGHT", "99") // without the prefix it is somebody else's
	t.Setenv("NODE_ID", "other")
	var c settings
	if err := Load(&c); err != nil {
		t.Fatal(err)
	}
	if c.Name != "ws-1" || c.Weight != 3 || c.Wait != 90*time.Second || string(c.Secret) != "s3cret" || !slices.Equal(c.Keys, []string{"a", "b"}) {
		t.Errorf("loaded %+v", c)
	}
	only(t, nil)
	t.Setenv("WEIGHT", "99")
	c = settings{Other: "stays"}
	if err := Load(&c); err != nil || c.Weight != 0 || c.Name != "" {
		t.Errorf("of an empty environment: %+v %v", c, err)
	}
	if err := Defaults(&c); err != nil || c.Weight != 1 || c.Wait != 20*time.Second || c.Level != "info" || c.Free != 0 || c.Other != "stays" {
		t.Errorf("defaults: %+v %v", c, err)
	}
	t.Setenv(Prefix+"WEIGHT_DEFAULT_", "7") // no way into the defaults
	t.Setenv(Prefix+"WEIGHT", "8")
	c = settings{}
	if err := Defaults(&c); err != nil || c.Weight == 8 {
		t.Errorf("defaults took the environment: %+v %v", c, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		env  map[string]string
		want []string // each is in the error
		not  string
	}{
		"an unknown name":         {map[string]string{"WIEGHT": "1"}, []string{"DIALRING_WIEGHT is no setting", "did you mean DIALRING_WEIGHT?", "-h"}, ""},
		"a similar name":          {map[string]string{"API_KEY": "topsecret"}, []string{"DIALRING_API_KEY ", "did you mean DIALRING_API_KEYS?"}, "topsecret"},
		"nothing similar":         {map[string]string{"XYZZY_PLUGH": "1"}, []string{"DIALRING_XYZZY_PLUGH is no setting"}, "did you mean"},
		"lower case":              {map[string]string{"weight": "1"}, []string{"DIALRING_weight"}, ""},
		"no number":               {map[string]string{"WEIGHT": "heavy"}, []string{"DIALRING_WEIGHT", "number"}, "heavy"},
		"an empty number":         {map[string]string{"WEIGHT": ""}, []string{"DIALRING_WEIGHT", "number"}, ""},
		"a fraction":              {map[string]string{"WEIGHT": "1.5"}, []string{"DIALRING_WEIGHT", "number"}, ""},
		"too large a number":      {map[string]string{"WEIGHT": "99999999999999999999"}, []string{"DIALRING_WEIGHT", "number"}, ""},
		"0 where a default is":    {map[string]string{"WEIGHT": "0"}, []string{"DIALRING_WEIGHT must not be 0", "default is 1"}, ""},
		"0s where a default is":   {map[string]string{"MOVE_DEADLINE": "0s"}, []string{"DIALRING_MOVE_DEADLINE must not be 0", "20s"}, ""},
		"a time without its unit": {map[string]string{"MOVE_DEADLINE": "20"}, []string{"DIALRING_MOVE_DEADLINE", "duration", "20s"}, ""},
		"several": {map[string]string{"WEIGHT": "x", "MOVE_DEADLINE": "y", "USER_JWT_SECERT": "topsecret", "NODE": "1"},
			[]string{"DIALRING_WEIGHT", "DIALRING_MOVE_DEADLINE", "DIALRING_USER_JWT_SECERT", "did you mean DIALRING_USER_JWT_SECRET?", "DIALRING_NODE "}, "topsecret"},
	} {
		t.Run(name, func(t *testing.T) {
			only(t, c.env)
			var s settings
			err := Load(&s)
			if err == nil {
				t.Fatalf("loaded %+v", s)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error does not say %q: %v", w, err)
				}
			}
			if c.not != "" && strings.Contains(err.Error(), c.not) {
				t.Errorf("the error says %q: %v", c.not, err)
			}
		})
	}
}

// A secret is hidden, in whatever way it is printed.
func TestSecret(t *testing.T) {
	const secret = "hunter2"
	c := settings{Secret: secret}
	var log bytes.Buffer
	text, jsonLog := slog.New(slog.NewTextHandler(&log, nil)), slog.New(slog.NewJSONHandler(&log, nil))
	for _, l := range []*slog.Logger{text, jsonLog} {
		l.Info("x", "secret", c.Secret)
		l.Info("x", "config", c)
		l.Info("x", "config", &c)
	}
	encoded, _ := json.Marshal(c)
	for name, s := range map[string]string{
		"%v": fmt.Sprintf("%v", c), "%+v": fmt.Sprintf("%+v", c), "%#v": fmt.Sprintf("%#v", c), "%q": fmt.Sprintf("%q", c.Secret),
		"a pointer": fmt.Sprint(&c), "Errorf": Errorf("%v", c.Secret).Error(), "a log": log.String(), "JSON": string(encoded),
	} {
		if strings.Contains(s, secret) {
			t.Errorf("%s shows it: %s", name, s)
		}
	}
	if got := fmt.Sprintf("%v", Secret("")); got != "" {
		t.Errorf("one that is not set shows as %q", got)
	}
}

func TestMainStatus(t *testing.T) {
	for name, c := range map[string]struct {
		args   []string
		env    map[string]string
		run    error
		status int
		out    string // is on standard output
		errOut string
	}{
		"help":                    {[]string{"-h"}, nil, nil, 0, "DIALRING_WEIGHT", ""},
		"--help":                  {[]string{"--help"}, nil, nil, 0, "DIALRING_WEIGHT", ""},
		"help, bad setting":       {[]string{"-h"}, map[string]string{"WEIGHT": "x"}, nil, 0, "DIALRING_WEIGHT", ""},
		"-version":                {[]string{"-version"}, nil, nil, 0, "about (devel) " + runtime.Version() + " ", ""},
		"--version, bad setting":  {[]string{"--version"}, map[string]string{"WEIGHT": "x"}, nil, 0, runtime.GOOS + "/" + runtime.GOARCH + "\n", ""},
		"an argument":             {[]string{"--listen=:1"}, nil, nil, exitSettings, "", "--listen=:1"},
		"a wrong setting":         {nil, map[string]string{"WEIGHT": "x"}, nil, exitSettings, "", "DIALRING_WEIGHT"},
		"a wrong level":           {nil, map[string]string{"LOG_LEVEL": "loud"}, nil, exitSettings, "", "DIALRING_LOG_LEVEL"},
		"a wrong format":          {nil, map[string]string{"LOG_FORMAT": "xml"}, nil, exitSettings, "", "DIALRING_LOG_FORMAT"},
		"settings that cannot be": {nil, nil, fmt.Errorf("start: %w", Errorf("DIALRING_X and DIALRING_Y are both set")), exitSettings, "", "DIALRING_X"},
		"it fails":                {nil, nil, errors.New("the port is taken"), 1, "", "the port is taken"},
		"it ends":                 {nil, nil, nil, 0, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			only(t, c.env)
			var out, errOut bytes.Buffer
			ran := false
			got := Main("about this program", c.args, &out, &errOut, func(s *settings) (string, string) { return s.Level, s.Format },
				func(_ context.Context, s settings, log *slog.Logger) error {
					ran = true
					if log == nil {
						t.Error("no log")
					}
					return c.run
				})
			if got != c.status {
				t.Errorf("status %d, want %d; %s", got, c.status, &errOut)
			}
			if !strings.Contains(out.String(), c.out) || !strings.Contains(errOut.String(), c.errOut) || (c.out == "" && out.Len() > 0) {
				t.Errorf("out %q, err %q", &out, &errOut)
			}
			if want := len(c.args) == 0 && c.env == nil; ran != want {
				t.Errorf("it ran: %v, want %v", ran, want)
			}
		})
	}
}

func TestBuilt(t *testing.T) {
	platform := " " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH
	commit := []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "true"}}
	for want, c := range map[string]struct {
		version string
		info    *debug.BuildInfo
	}{
		"(devel)":                         {"", nil},
		"v1.2.3":                          {"", &debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}}},
		"1.2.4":                           {"1.2.4", &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}},
		"(devel) 0123456789ab (modified)": {"", &debug.BuildInfo{Settings: commit}},
		"v1.2.3 0123456789ab":             {"", &debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}, Settings: commit[:2]}},
	} {
		version = c.version
		if got := built(c.info); got != want+platform {
			t.Errorf("%q, want %q", got, want+platform)
		}
	}
	version = ""
}

func TestLogger(t *testing.T) {
	for level, want := range map[string]int{"debug": 4, "info": 3, "": 3, "warn": 2, "error": 1} {
		for _, format := range []string{"text", "json", ""} {
			var b bytes.Buffer
			l, err := Logger(&b, level, format)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range []func(string, ...any){l.Debug, l.Info, l.Warn, l.Error} {
				f("line")
			}
			if n := strings.Count(b.String(), "\n"); n != want {
				t.Errorf("level %q: %d lines, want %d", level, n, want)
			}
			if format == "json" && !json.Valid([]byte(strings.SplitN(b.String(), "\n", 2)[0])) {
				t.Errorf("no JSON: %s", &b)
			}
		}
	}
}

func TestListen(t *testing.T) {
	for _, c := range []struct {
		addr, dev, want string // want "": refused
	}{
		{"", "", ":8080"}, {"", "false", ":8080"}, {"", "true", "127.0.0.1:8080"}, {"", "insecure", "127.0.0.1:8080"},
		{":9", "false", ":9"}, {"0.0.0.0:9", "false", "0.0.0.0:9"}, {"node.example.com:9", "false", "node.example.com:9"},
		{"127.0.0.1:9", "true", "127.0.0.1:9"}, {"localhost:9", "true", "localhost:9"}, {"[::1]:9", "true", "[::1]:9"}, {"[::ffff:127.0.0.1]:9", "true", "[::ffff:127.0.0.1]:9"},
		{"127.0.0.1:0", "true", "127.0.0.1:0"},
		{":9", "true", ""}, {"0.0.0.0:9", "true", ""}, {"[::]:9", "true", ""}, {"10.0.0.1:9", "true", ""}, {"example.com:9", "true", ""}, {"127.0.0.1.example.com:9", "true", ""},
		{":9", "insecure", ":9"}, {"0.0.0.0:9", "insecure", "0.0.0.0:9"},
		{"9", "false", ""}, {"localhost", "false", ""}, {"::1:9", "false", ""}, {"a:b:c", "false", ""}, {"", "yes", ""}, {"", "TRUE", ""},
	} {
		addr := c.addr
		err := Listen("LISTEN", &addr, ":8080", c.dev)
		if c.want == "" && err == nil || c.want != "" && (err != nil || addr != c.want) {
			t.Errorf("%q with DEV=%q: %q %v, want %q", c.addr, c.dev, addr, err, c.want)
		}
		if err != nil && (!isSettings(err) || !strings.Contains(err.Error(), "DIALRING_")) {
			t.Errorf("the error names no setting: %v", err)
		}
	}
}

func TestChecks(t *testing.T) {
	for _, s := range []string{"dialring", "a", "a-1", strings.Repeat("a", 63)} {
		if err := Cluster(s); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{"", "A", "a.b", "a_b", "*", ">", "a b", "é", strings.Repeat("a", 64)} {
		if Cluster(s) == nil {
			t.Errorf("cluster %q is accepted", s)
		}
	}
	for _, c := range []struct {
		v  int
		ok bool
	}{{0, false}, {1, true}, {64, true}, {65, false}, {-1, false}} {
		if err := Range("WEIGHT", c.v, 1, 64); (err == nil) != c.ok {
			t.Errorf("%d: %v", c.v, err)
		}
	}
	if OneOf("X", "b", "a", "b") != nil || OneOf("X", "", "a", "b") == nil || OneOf("X", "A", "a") == nil {
		t.Error("OneOf is wrong")
	}
	list := []string{" https://app.example.com ", "http://localhost:3000"}
	if got, err := Origins(list); err != nil || got[0] != "https://app.example.com" || list[0] == got[0] {
		t.Errorf("%q of %q, %v", got, list, err)
	}
	for _, o := range []string{"", "*", "null", "app.example.com", "https://app.example.com/", "https://app.example.com/x", "https://*.example.com", "HTTPS://app.example.com",
		"https://App.example.com", "https://u@app.example.com", "https://", "https://app.example.com?x", "https://app.example.com#x"} {
		if _, err := Origins([]string{o}); err == nil {
			t.Errorf("origin %q is accepted", o)
		}
	}
}
