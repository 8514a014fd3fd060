package config

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// fileSettings have a secret, a text that may hold a password, and one that may not.
type fileSettings struct {
	URL    string `env:"NATS_URL" default:"nats://127.0.0.1:4222" file:"true" desc:"may hold a password"`
	Secret Secret `env:"USER_JWT_SECRET" desc:"a secret"`
	Name   string `env:"NODE_ID" desc:"a name"`
}

func secretFile(t *testing.T, content string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(p, []byte(content), 0o400); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSecretFromFile(t *testing.T) {
	for content, want := range map[string]string{
		"hunter2": "hunter2", "hunter2\n": "hunter2", "hunter2\r\n": "hunter2", " hunter 2 \n": " hunter 2 ", "a\nb\n": "a\nb",
		strings.Repeat("x", maxSecretFile): strings.Repeat("x", maxSecretFile),
	} {
		only(t, map[string]string{"USER_JWT_SECRET_FILE": secretFile(t, content)})
		var c fileSettings
		if err := Load(&c); err != nil || string(c.Secret) != want {
			t.Errorf("of %.20q: %.20q, %v", content, string(c.Secret), err)
		}
	}
	only(t, map[string]string{"NATS_URL_FILE": secretFile(t, "nats://node:hunter2@nats\n"), "USER_JWT_SECRET": "s3cret"})
	var c fileSettings
	if err := Load(&c); err != nil || c.URL != "nats://node:hunter2@nats" || c.Secret != "s3cret" {
		t.Errorf("loaded %q, %v", c.URL, err)
	}
	// As Kubernetes mounts them.
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(secretFile(t, "hunter2"), link); err != nil {
		t.Fatal(err)
	}
	only(t, map[string]string{"USER_JWT_SECRET_FILE": link})
	if err := Load(&c); err != nil || c.Secret != "hunter2" {
		t.Errorf("behind a link: %v", err)
	}
}

func TestSecretFileRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo, closed := filepath.Join(dir, "fifo"), secretFile(t, "hunter2")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(closed, 0); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		env  map[string]string
		want []string
	}{
		"both": {map[string]string{"USER_JWT_SECRET": "hunter2", "USER_JWT_SECRET_FILE": closed},
			[]string{"DIALRING_USER_JWT_SECRET and DIALRING_USER_JWT_SECRET_FILE are both set"}},
		"both, one empty": {map[string]string{"USER_JWT_SECRET": "", "USER_JWT_SECRET_FILE": closed}, []string{"are both set"}},
		"no path":         {map[string]string{"USER_JWT_SECRET_FILE": ""}, []string{"DIALRING_USER_JWT_SECRET_FILE is empty", "path"}},
		"no file":         {map[string]string{"USER_JWT_SECRET_FILE": filepath.Join(dir, "none")}, []string{"DIALRING_USER_JWT_SECRET_FILE", "none", "no such file"}},
		"an empty file":   {map[string]string{"USER_JWT_SECRET_FILE": secretFile(t, "")}, []string{"DIALRING_USER_JWT_SECRET_FILE", "is empty"}},
		"an empty line":   {map[string]string{"USER_JWT_SECRET_FILE": secretFile(t, "\r\n")}, []string{"DIALRING_USER_JWT_SECRET_FILE", "is empty"}},
		"too large":       {map[string]string{"USER_JWT_SECRET_FILE": secretFile(t, strings.Repeat("hunter2.", 8<<10)+"x")}, []string{"DIALRING_USER_JWT_SECRET_FILE", "65536"}},
		"a folder":        {map[string]string{"USER_JWT_SECRET_FILE": dir}, []string{"DIALRING_USER_JWT_SECRET_FILE", "regular"}},
		"a pipe":          {map[string]string{"USER_JWT_SECRET_FILE": fifo}, []string{"DIALRING_USER_JWT_SECRET_FILE", "regular"}},
		"no secret":       {map[string]string{"NODE_ID_FILE": closed}, []string{"DIALRING_NODE_ID_FILE is no setting"}},
		"mistyped":        {map[string]string{"USER_JWT_SECERT_FILE": closed}, []string{"did you mean DIALRING_USER_JWT_SECRET_FILE?"}},
		"two at once": {map[string]string{"USER_JWT_SECRET_FILE": dir, "NATS_URL_FILE": ""},
			[]string{"DIALRING_USER_JWT_SECRET_FILE", "DIALRING_NATS_URL_FILE"}},
	} {
		t.Run(name, func(t *testing.T) {
			only(t, c.env)
			var s fileSettings
			err := Load(&s)
			if err == nil {
				t.Fatal("it is accepted")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error is %v, without %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
	if os.Getuid() != 0 { // root reads everything
		only(t, map[string]string{"USER_JWT_SECRET_FILE": closed})
		if err := Load(&fileSettings{}); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("one that may not be read: %v", err)
		}
	}
}
