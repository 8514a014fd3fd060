package main

import (
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/dialring/dialring/client"
)

const (
	defaultLocator = "http://127.0.0.1:8080"
	devKey         = "dev" // what development mode takes
	maxSecretFile  = 1 << 20
)

// locatorList is where the locators are.
func (a *app) locatorList() ([]string, error) {
	list := a.locators
	if len(list) == 0 {
		list = strings.Split(a.env("DIALRING_CLI_LOCATOR"), ",")
	}
	var out []string
	for _, l := range list {
		l = strings.TrimSpace(l)
		if l == "" {
			continue
		}
		if u, err := url.Parse(l); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			_, shown, ok := strings.Cut(l, "@") // before that may be a password
			if !ok {
				shown = l
			}
			return nil, usagef("%q is no locator's URL; it must be like https://push.example.com", shown)
		}
		out = append(out, l)
	}
	if len(out) == 0 {
		out = []string{defaultLocator}
	}
	return out, nil
}

// apiKey is the key of a service.
func (a *app) apiKey(locators []string) (string, error) {
	if a.keyFile != "" {
		return secretFile("--api-key-file", a.keyFile)
	}
	if k := a.env("DIALRING_CLI_API_KEY"); k != "" {
		return k, nil
	}
	for _, l := range locators {
		if !onLoopback(l) {
			return "", usagef("an API key is needed: set DIALRING_CLI_API_KEY or --api-key-file")
		}
	}
	return devKey, nil
}

// secretFile reads a file with one secret. An end of line behind it does not count.
func secretFile(flag, name string) (string, error) {
	b, err := os.ReadFile(name) // #nosec G304 -- the caller names the file
	if err != nil {
		return "", usagef("%s: %v", flag, err)
	}
	s := strings.TrimRight(string(b), "\r\n")
	if s == "" || len(s) > maxSecretFile {
		return "", usagef("%s: %s has %d bytes", flag, name, len(s))
	}
	return s, nil
}

func onLoopback(locator string) bool {
	u, err := url.Parse(locator)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// pusher is the SDK's, as the settings say.
func (a *app) pusher() (*client.Pusher, error) {
	locators, err := a.locatorList()
	if err != nil {
		return nil, err
	}
	key, err := a.apiKey(locators)
	if err != nil {
		return nil, err
	}
	// Each locator is asked at least once.
	p, err := client.NewPusher(client.PusherConfig{Locators: locators, APIKey: key, HTTP: &http.Client{Transport: a.transport}, Attempts: max(4, len(locators))})
	if err != nil {
		return nil, usageError{err}
	}
	return p, nil
}

// locating is for the locates of a client.
func (a *app) locating() *http.Client {
	return &http.Client{Transport: a.transport, Timeout: 10 * time.Second}
}
