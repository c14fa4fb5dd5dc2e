from homeroom.main import main

main()
