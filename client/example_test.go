package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"time"

	"github.com/dialring/dialring/client"
)

// An app receives until it is interrupted.
func ExampleClient() {
	c, err := client.New(client.Config{
		Locators: []string{"https://push.example.com"},
		Token:    client.StaticToken(os.Getenv("TOKEN")),
		OnMessage: func(_ context.Context, m client.Message) {
			fmt.Printf("%s\n", m.Data)
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := c.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// A server that ends a session for good says why.
func ExampleClient_Run() {
	var c *client.Client // made with client.New

	var stopped *client.StoppedError
	switch err := c.Run(context.Background()); {
	case errors.As(err, &stopped) && stopped.Code == 4003:
		log.Print("signed in elsewhere with this device")
	case err != nil:
		log.Print("sign in again: ", err)
	}
}

func ExampleConfig_token() {
	_ = client.Config{
		Locators: []string{"https://eu.push.example.com", "https://us.push.example.com"},
		Token: func(ctx context.Context) (string, error) {
			return signIn(ctx) // called before each connection
		},
		Device:    "laptop-7",
		OnMessage: func(context.Context, client.Message) {},
		OnEvent:   func(e client.Event) { log.Print(e.State, e.Err) },
	}
}

func signIn(context.Context) (string, error) { return "a JWT", nil }

func ExampleMessage_Unmarshal() {
	m := client.Message{ID: "m1", Data: []byte(`{"text":"hello"}`), JSON: true}

	var note struct{ Text string }
	if err := m.Unmarshal(&note); err != nil {
		log.Fatal(err)
	}
	fmt.Println(note.Text)
	// Output: hello
}

func ExampleNewPusher() {
	p, err := client.NewPusher(client.PusherConfig{
		Locators: []string{"http://locator-1.internal:8080", "http://locator-2.internal:8080"},
		APIKey:   os.Getenv("PUSH_API_KEY"),
	})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := p.Push(context.Background(), "alice", "hello"); err != nil {
		log.Print(err)
	}
}

// A message to one user, kept until the user's devices have it.
func ExamplePusher_Push() {
	locator := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"id":"m1","seq":1,"stored":true,"delivered":2,"node":"ws-3"}`)
	}))
	defer locator.Close()

	p, err := client.NewPusher(client.PusherConfig{Locators: []string{locator.URL}, APIKey: "dev"})
	if err != nil {
		log.Fatal(err)
	}
	r, err := p.Push(context.Background(), "alice", map[string]string{"text": "hello"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("stored: %t, delivered to %d sessions\n", r.Stored, r.Delivered)
	// Output: stored: true, delivered to 2 sessions
}

// A message that matters now or not at all.
func ExampleEphemeral() {
	var p *client.Pusher // made with client.NewPusher

	_, err := p.Push(context.Background(), "alice", "bob is typing", client.Ephemeral())
	if err != nil {
		log.Print(err)
	}
}

// What the push is about names it: done twice, it arrives once.
func ExampleIdempotencyKey() {
	var p *client.Pusher // made with client.NewPusher

	r, err := p.Push(context.Background(), "alice", "your parcel has arrived",
		client.IdempotencyKey("parcel-1234-arrived"), client.TTL(24*time.Hour))

	var refused *client.APIError
	if errors.As(err, &refused) && refused.Code == "key_reused" {
		log.Print("another message had this key")
	} else if err == nil && r.Duplicate {
		log.Print("alice has it already")
	}
}

// One call for several messages; each has a result of its own.
func ExamplePusher_PushMany() {
	var p *client.Pusher // made with client.NewPusher

	results, err := p.PushMany(context.Background(), []client.Item{
		{User: "alice", Data: "you won"},
		{User: "bob", Data: "you lost"},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, r := range results {
		fmt.Println(r.User, r.Delivered, r.Err)
	}
}

func ExamplePusher_PushUsers() {
	var p *client.Pusher // made with client.NewPusher

	results, err := p.PushUsers(context.Background(), []string{"alice", "bob"}, "the game starts")
	fmt.Println(len(results), err)
}

func ExamplePusher_Broadcast() {
	var p *client.Pusher // made with client.NewPusher

	r, err := p.Broadcast(context.Background(), "maintenance at ten")
	fmt.Println(r.Delivered, r.Failed, err)
}
